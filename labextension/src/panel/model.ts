/** The widget's model as the panel uses it: typed reading, one call for all changes of a frame, and what is done to the page beside it. */
import type { CardJson, Command, Detail, Graph, Head, Json, Step, Table, Task } from "../types";
import { loadVega } from "../card/vega-loader";
import type { Vega } from "../card/vega-types";

/** What of an anywidget model is used here. */
export interface Model {
    get(key: string): unknown;
    on(event: string, heard: (...args: unknown[]) => void): void;
    off(event: string, heard: (...args: unknown[]) => void): void;
    send(message: Json): void;
    widget_manager?: { get_model(id: string): Promise<{ get(key: string): unknown }> };
}

const EMPTY_HEAD: Head = {
    flow: "", run: "", token: "", state: "running", started: null, ended: null, now: 0, origin: null,
    notes: [], trouble: null, params: [], error: null, advice: null, said: null, retry: null,
};

/** A kernel that is free answers at once; starting a retry may take a second. */
const PATIENCE_S = 3;
const BUSY = "The kernel has not heard this click yet: it will when the cell that runs now has ended. Interrupting that cell leaves the run alone.";
const goneText = (head: Head): string => `The kernel that showed this has ended. The run goes on without it: \`%flow attach ${head.run}\` in the new kernel shows it again.`;

export class State {
    /** When the last news came, by the clock of this page, milliseconds. */
    heardAt = Date.now();
    /** Whether the kernel of this model has ended or was started anew: nobody hears what is asked here any more. */
    gone = false;
    /** Seconds that the engine's clock is ahead of this page's. */
    private ahead = 0;
    /** The last click that wants an answer: when, and how much had been said then. */
    private asked: { at: number; n: number } | null = null;

    /** The cards that the last drawing asked for. */
    private readonly drawn = new Set<string>();

    constructor(private readonly model: Model) {
        this.head.now && this.setClock();
    }

    private read<T>(key: string, otherwise: T): T {
        const found = this.model.get(key);
        return found === undefined || found === null ? otherwise : (found as T);
    }

    get head(): Head {
        const head = this.read("head", EMPTY_HEAD);
        const trouble = this.gone && head.ended === null ? goneText(head) : this.waits() > PATIENCE_S ? BUSY : null;
        return trouble ? { ...head, trouble } : head;
    }
    get graph(): Graph { return this.read("graph", { width: 0, height: 0, nodes: [], edges: [] }); }
    get steps(): Step[] { return this.read("steps", []); }
    get tasks(): Task[] { return this.read("tasks", []); }
    get tables(): { [step: string]: Table } { return this.read("tables", {}); }
    detail(task: string): Detail | null { return this.read<Detail | null>(`detail ${task}`, null); }
    card(key: string): CardJson | null { this.drawn.add(key); return this.read<CardJson | null>(key, null); }
    send(command: Command): void {
        if (command.do !== "show") this.asked = { at: Date.now(), n: this.saidSoFar() };
        this.model.send(command as unknown as Json);
    }

    /** Seconds that a click has waited for its answer; 0 if none waits. */
    waits(): number {
        return this.asked && this.asked.n === this.saidSoFar() ? (Date.now() - this.asked.at) / 1000 : 0;
    }

    private saidSoFar(): number { return this.read<Head>("head", EMPTY_HEAD).said?.n ?? 0; }

    /** Now by the engine's clock, seconds; stands still when the run has ended or the kernel says nothing any more. */
    now(): number {
        const { ended, now, state } = this.head;
        if (ended !== null) return ended;
        if (state !== "running" || this.silentFor() > 5) return now;
        return Date.now() / 1000 + this.ahead;
    }

    /** Seconds since the last news of a run that goes on; 0 of one that has ended. */
    silentFor(): number {
        return this.head.state === "running" ? (Date.now() - this.heardAt) / 1000 : 0;
    }

    private setClock(): void {
        this.ahead = this.head.now - Date.now() / 1000;
    }

    /** Whether a change was one of cards alone that are not drawn, as far as the model tells what changed. */
    private unseen(model: unknown): boolean {
        const keys = Object.keys((model as { changed?: object } | undefined)?.changed ?? {});
        return keys.length > 0 && keys.every((key) => key.startsWith("card ") && !this.drawn.has(key));
    }

    /** Calls `changed` at most once a frame, also for changes that came together. Gives what ends it. */
    listen(changed: () => void): () => void {
        let frame = 0;
        const draw = (): void => { frame ||= requestAnimationFrame(() => { frame = 0; this.drawn.clear(); changed(); }); };
        const heard = (model: unknown): void => {
            const back = this.gone;
            this.heardAt = Date.now();
            this.gone = false;
            if (back || !this.unseen(model)) draw();
        };
        // Front ends of Jupyter say so when a kernel restarts or ends; a model has a new one only if it hears of it.
        const dead = (): void => { this.gone = true; draw(); };
        const clocked = (): void => this.setClock();
        this.model.on("change", heard);
        this.model.on("change:head", clocked);
        this.model.on("comm_live_update", dead);
        return () => {
            cancelAnimationFrame(frame);
            this.model.off("change", heard);
            this.model.off("change:head", clocked);
            this.model.off("comm_live_update", dead);
        };
    }

    /** Vega from the kernel's own asset widget, which comes with the first card that needs it. */
    vega = (): Promise<Vega> => {
        const asset = this.model.get("vega") as { model: string; version: string } | null | undefined;
        const manager = this.model.widget_manager;
        if (!asset || !manager) return Promise.reject(new Error("this front end cannot load Vega"));
        return loadVega(asset.version, async () => {
            const bytes = (await manager.get_model(asset.model)).get("bytes") as DataView<ArrayBuffer>;
            return new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
        });
    };
}

const hiding = new Map<string, { style: HTMLStyleElement; views: number }>();

/** Hides the static status of the run with that token while a panel of it is in the page. Gives what ends it. */
export function hideStatic(token: string): () => void {
    if (!token) return () => {};
    let found = hiding.get(token);
    if (!found) {
        const style = document.createElement("style");
        const name = `[data-flowbook-run="${CSS.escape(token)}"]`;
        style.textContent = `${name}{display:none}.jp-OutputArea-child:has(> .jp-OutputArea-output > ${name}){display:none}`;
        document.head.append(style);
        hiding.set(token, (found = { style, views: 0 }));
    }
    found.views += 1;
    const held = found;
    return () => {
        held.views -= 1;
        if (held.views) return;
        held.style.remove();
        hiding.delete(token);
    };
}

/** Whether the page is dark: as JupyterLab or VS Code say, else as its reader's system is. */
export function isDark(): boolean {
    const { jpThemeLight, vscodeThemeKind } = document.body.dataset;
    if (jpThemeLight) return jpThemeLight === "false";
    if (vscodeThemeKind) return vscodeThemeKind.includes("dark") || vscodeThemeKind === "vscode-high-contrast";
    return matchMedia("(prefers-color-scheme: dark)").matches;
}

export function onTheme(changed: () => void): () => void {
    const watch = new MutationObserver(changed);
    watch.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "data-jp-theme-name", "data-vscode-theme-kind"] });
    return () => watch.disconnect();
}
