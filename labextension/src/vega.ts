/** The second bundle: Vega and Vega-Lite, for specifications of people who are not trusted. Loaded by card/vega-loader.ts when a card has a chart.
 *
 * What a specification cannot do here: load anything (the loader refuses every address but images that stand in it), run code (expressions are
 * interpreted), follow links, listen to anything but the pointer over its own chart, or put inputs anywhere else in the page. It is drawn on a canvas,
 * since a browser fetches what a colour of an SVG names (`url(…)`), and a colour can be put together by an expression. And it cannot stop the page: every new
 * specification is first drawn by a worker without a page, which is ended when that takes too long. Where a browser lets no worker start, this last
 * protection is missing.
 */
import { compile, type TopLevelSpec } from "vega-lite";
import { expressionFunction, type Loader, type LoggerInterface, parse, type Runtime, type Spec, View } from "vega";
import { expressionInterpreter } from "vega-interpreter";
import type { Drawing, Look, Vega } from "./card/vega-types";
import type { Json } from "./types";

type Given = { [name: string]: Json };

const TRY_MS = 5_000; // for drawing aside, the start of the worker included
const MARKS = 50_000; // drawn elements of one chart
const PIXELS = 4_000; // width and height of one chart
const SEQUENCE = 100_000; // numbers that one expression makes
const UNTRIED_ROWS = 5_000; // rows of new data for a chart that is known are drawn at once up to here
const ROWS = "flowbook_rows"; // name of data that has none

expressionFunction("sequence", (start: number, stop?: number, step = 1) => {
    const [from, to] = stop === undefined ? [0, start] : [start, stop];
    const count = Math.max(Math.ceil((to - from) / step), 0);
    if (!(count <= SEQUENCE)) throw new Error(`a sequence of more than ${SEQUENCE} numbers`);
    return Array.from({ length: count }, (_, i) => from + i * step);
});

// ---- from a specification to a view -----------------------------------------------------------------------------------

class Log implements LoggerInterface {
    errors: string[] = [];
    level(): number;
    level(value: number): this;
    level(value?: number): number | this {
        return value === undefined ? 0 : this;
    }
    error(...words: readonly unknown[]): this {
        if (this.errors.length < 10) this.errors.push(words.map((word) => (word instanceof Error ? word.message : String(word))).join(" "));
        return this;
    }
    warn(): this {
        return this;
    }
    info(): this {
        return this;
    }
    debug(): this {
        return this;
    }
}

/** Gives nothing for every address, and says so; Vega itself does not take a refusal well. */
function loader(log: Log): Loader {
    const nothing = (): Promise<string> => {
        log.error("its data must stand in it, since nothing is loaded from elsewhere");
        return Promise.resolve("[]");
    };
    const sanitize = (address: string, options?: { context?: string }): Promise<{ href: string }> =>
        options?.context === "image" && /^data:image\/(png|jpeg|gif|webp|bmp);base64,[A-Za-z0-9+/=]+$/.test(address)
            ? Promise.resolve({ href: address })
            : Promise.reject(new Error("an address that is not in the chart itself"));
    return { options: {}, load: nothing, http: nothing, file: nothing, sanitize } as unknown as Loader;
}

interface Prepared {
    runtime: Runtime;
    /** The data that can be replaced by itself, if there is such. */
    rows: string | null;
}

function prepared(given: Given, look: Look): Prepared {
    const spec = structuredClone(given);
    const isVega = typeof spec.$schema === "string" ? /\/vega\/v/.test(spec.$schema) : Array.isArray(spec.marks);
    const compiled = isVega ? (spec as unknown as Spec) : lite(spec, look);
    const runtime = parse(compiled, isVega ? (config(look) as object) : undefined, { ast: true }) as Runtime & { eventConfig?: unknown };
    runtime.eventConfig = {
        bind: "container",
        timer: false,
        selector: false,
        container: false,
        window: ["pointermove", "pointerup", "pointercancel", "mousemove", "mouseup", "touchmove", "touchend"],
        defaults: { allow: true }, // the chart keeps the page from nothing
    };
    const source = compiled.data?.find((each) => "values" in each) as { name: string; format?: { parse?: unknown } } | undefined;
    const replaceable = !isVega && source && source.name === rowsName(given) && !source.format?.parse;
    return { runtime, rows: replaceable ? source.name : null };
}

const rowsName = (spec: Given): string => {
    const data = spec.data as Given | undefined;
    return typeof data?.name === "string" ? data.name : ROWS;
};

function lite(spec: Given, look: Look): Spec {
    const data = spec.data as Given | undefined;
    if (data && Array.isArray(data.values) && typeof data.name !== "string") data.name = ROWS;
    const single = !["hconcat", "vconcat", "concat", "facet", "repeat"].some((name) => name in spec);
    if (single && (spec.width === undefined || spec.width === "container")) {
        spec.width = Math.min(look.width, 640);
        spec.autosize ??= { type: "fit-x", contains: "padding" };
    }
    if (spec.height === "container") delete spec.height;
    delete spec.usermeta;
    return compile(spec as unknown as TopLevelSpec, { config: config(look) as object, logger: new Log() }).spec as Spec;
}

function config({ text, faint, line, font }: Look): Given {
    const words = { labelColor: faint, titleColor: text, labelFont: font, titleFont: font, titleFontWeight: 500, labelFontSize: 11, titleFontSize: 11 };
    return {
        background: "transparent",
        font,
        view: { stroke: null, continuousHeight: 200, discreteHeight: { step: 20 } },
        axis: { ...words, gridColor: line, domainColor: line, tickColor: line },
        legend: words,
        header: words,
        title: { color: text, font, fontSize: 12, fontWeight: 600, anchor: "start", subtitleColor: faint },
        text: { fill: text, color: text },
        line: { strokeWidth: 1.7 },
        mark: { color: "#3b7dc4" },
        range: { category: ["#3b7dc4", "#d9762b", "#3a9d6a", "#b058a8", "#a08000", "#2f98a6", "#c94a5e", "#7a838e"] },
    };
}

async function run(view: View, log: Log): Promise<void> {
    await view.runAsync();
    if (log.errors.length) throw new Error(log.errors[0]);
}

// ---- in the worker -------------------------------------------------------------------------------------------------

interface Task {
    number: number;
    spec: Given;
    look: Look;
}

async function tryOut({ spec, look }: Task): Promise<void> {
    const log = new Log();
    const view = new View(prepared(spec, look).runtime, { renderer: "none", loader: loader(log), logger: log, expr: expressionInterpreter });
    await run(view, log);
    if (Math.max(view.width(), view.height()) > PIXELS) throw new Error(`it is larger than ${PIXELS} pixels`);
    if (count((view.scenegraph() as unknown as { root: Group }).root, MARKS) > MARKS) throw new Error(`it draws more than ${MARKS.toLocaleString("en-US")} marks`);
    view.finalize();
}

interface Group {
    items?: Group[];
}

function count(group: Group, most: number): number {
    let found = 1;
    for (const item of group.items ?? []) {
        found += count(item, most - found);
        if (found > most) break;
    }
    return found;
}

const scope = globalThis as unknown as { document?: unknown; postMessage(message: unknown): void; onmessage: ((event: MessageEvent<Task>) => void) | null };
if (typeof scope.document === "undefined" && typeof WorkerGlobalScope !== "undefined") {
    scope.postMessage({ number: 0 }); // it has started
    scope.onmessage = async ({ data }) => {
        try {
            await tryOut(data);
            scope.postMessage({ number: data.number });
        } catch (fault) {
            scope.postMessage({ number: data.number, why: fault instanceof Error ? fault.message : String(fault) });
        }
    };
}
declare const WorkerGlobalScope: unknown;

// ---- on the page ---------------------------------------------------------------------------------------------------

let worker: Worker | null = null;
let living: Worker | null = null; // that has said that it runs
let numbers = 0;
let queue: Promise<unknown> = Promise.resolve();

/** Rejects if a specification cannot be drawn, or not in time. One after the other. */
function tried(spec: Given, look: Look): Promise<void> {
    const next = queue.then(() => tryOne(spec, look));
    queue = next.catch(() => {});
    return next;
}

function tryOne(spec: Given, look: Look): Promise<void> {
    const asked = started();
    if (asked === null) return Promise.resolve(); // see the top of the file
    const number = ++numbers;
    return new Promise((resolve, reject) => {
        const end = (why?: string, lost = false): void => {
            clearTimeout(timer);
            if (lost) {
                asked.terminate();
                worker = null;
            }
            if (why === undefined) resolve();
            else reject(new Error(why));
        };
        const timer = setTimeout(() => end(`drawing it takes more than ${TRY_MS / 1000} s`, true), TRY_MS);
        asked.onmessage = ({ data }: MessageEvent<{ number: number; why?: string }>) => {
            if (data.number === 0) living = asked;
            else if (data.number === number) end(data.why);
        };
        asked.onerror = (event) => {
            event.preventDefault();
            end(living === asked ? event.message || "it cannot be drawn" : undefined, true);
        };
        asked.postMessage({ number, spec, look } satisfies Task);
    });
}

function started(): Worker | null {
    try {
        worker ??= new Worker(import.meta.url, { type: "module" });
    } catch {
        return null;
    }
    return worker;
}

/** altair names its only data after what it holds; as values of the chart itself they can be replaced. */
function inline(spec: Given): Given {
    const sets = spec.datasets as Given | undefined;
    const name = (spec.data as Given | undefined)?.name;
    if (!sets || typeof name !== "string" || Object.keys(sets).length !== 1 || !Array.isArray(sets[name])) return spec;
    const { datasets: _, data: __, ...rest } = spec;
    if (JSON.stringify(rest).includes(JSON.stringify(name))) return spec; // a part of it uses it, too
    return { ...rest, data: { values: sets[name] } };
}

async function draw(el: HTMLElement, given: Given, look: Look): Promise<Drawing> {
    const spec = inline(given);
    await tried(spec, look);
    const { runtime, rows } = prepared(spec, look);
    const log = new Log();
    const view = new View(runtime, { renderer: "canvas", container: el, hover: true, loader: loader(log), logger: log, expr: expressionInterpreter });
    try {
        await run(view, log);
    } catch (fault) {
        view.finalize();
        throw fault;
    }
    let frame = withoutRows(spec);
    return {
        async change(given) {
            const next = inline(given);
            const found = (next.data as Given | undefined)?.values;
            if (rows === null || !Array.isArray(found) || withoutRows(next) !== frame || rowsName(next) !== rows) return false;
            if (found.length > UNTRIED_ROWS) await tried(next, look);
            frame = withoutRows(next);
            view.data(rows, structuredClone(found.map((row) => (typeof row === "object" && row !== null ? row : { data: row }))));
            await run(view, log);
            return true;
        },
        end: () => void view.finalize(),
    };
}

/** A specification but for the rows of its data, to be compared. */
function withoutRows(spec: Given): string {
    const data = spec.data as Given | undefined;
    return JSON.stringify(data && Array.isArray(data.values) ? { ...spec, data: { ...data, values: null } } : spec);
}

export default { draw } satisfies Vega;
