/** Charts of Vega. The next state is drawn aside and takes the place of the one that is seen when it is ready; of many only the latest is drawn. */
import type { Component, Json } from "../types";
import { type Drawn, h, list, record, same, say, show, text } from "./dom";
import type { Host } from "./index";
import { table } from "./table";
import type { Drawing, Look } from "./vega-types";

const DATA_ROWS = 50; // shown where the chart cannot be drawn

type Spec = { [name: string]: Json };

export function chart(host: Host): Drawn {
    const place = h("div", { class: "fbl-chart" });
    const note = h("div", { class: "fbl-dim" }, "the chart is being drawn …");
    const instead = table(() => ({ el: h("span"), update: () => {} }));
    const el = h("figure", { class: "fbl-figure" }, place, note, instead.el);
    let wanted: Spec | null = null;
    let shown: { spec: Spec; drawing: Drawing; theme: string; width: number } | null = null;
    let busy = false;
    let ended = false;
    show(instead.el, false);

    const step = async (spec: Spec, theme: string): Promise<void> => {
        const vega = await host.vega();
        const width = place.clientWidth || 480;
        if (shown && shown.theme === theme && shown.width === width && (await shown.drawing.change(spec))) {
            shown.spec = spec;
            return;
        }
        const next = h("div", { class: "fbl-next" });
        place.append(next);
        try {
            const drawing = await vega.draw(next, spec, look(place, width));
            shown?.drawing.end();
            for (const old of [...place.children]) if (old !== next) old.remove();
            next.className = "";
            shown = { spec, drawing, theme, width };
            if (ended) drawing.end();
        } catch (fault) {
            next.remove();
            throw fault;
        }
    };
    const work = async (): Promise<void> => {
        if (busy) return;
        busy = true;
        while (wanted && !ended) {
            const spec = wanted;
            wanted = null;
            try {
                await step(spec, host.theme);
                show(note, false);
                show(instead.el, false);
                show(place, true);
            } catch (fault) {
                explain(spec, fault);
            }
        }
        busy = false;
    };
    const explain = (spec: Spec, fault: unknown): void => {
        shown?.drawing.end();
        shown = null;
        place.replaceChildren();
        show(place, false);
        say(note, `this chart cannot be drawn: ${fault instanceof Error ? fault.message : String(fault)}`.slice(0, 500));
        show(note, true);
        const rows = inlineRows(spec);
        instead.update({ type: "table", ...rows });
        show(instead.el, rows.rows.length > 0);
    };
    return {
        el,
        update(part: Component) {
            const spec = record(part.spec) ?? {};
            if (shown && !busy && shown.theme === host.theme && same(shown.spec, spec)) return;
            wanted = spec;
            void work();
        },
        end() {
            ended = true;
            shown?.drawing.end();
            instead.end?.();
        },
    };
}

/** The colours of the page, as CSS has them at this place. */
function look(place: HTMLElement, width: number): Look {
    const style = getComputedStyle(place);
    const named = (name: string, otherwise: string): string => style.getPropertyValue(name).trim() || otherwise;
    return { width, text: style.color, faint: named("--fbl-dim", "#777"), line: named("--fbl-line", "#ccc"), font: style.fontFamily };
}

/** The data that stands in a specification, as a table. */
function inlineRows(spec: Spec): { headers: string[]; rows: Json[][]; rows_left_out?: number } {
    const data = record(spec.data);
    const rows = list(data?.values ?? record(spec.datasets)?.[text(data?.name)]).map((row) => record(row) ?? { data: row });
    const headers = [...new Set(rows.slice(0, DATA_ROWS).flatMap((row) => Object.keys(row)))].slice(0, 20);
    const cells = rows.slice(0, DATA_ROWS).map((row) => headers.map((name) => flat(row[name])));
    return { headers, rows: cells, ...(rows.length > DATA_ROWS && { rows_left_out: rows.length - DATA_ROWS }) };
}

const flat = (value: Json | undefined): Json => (typeof value === "object" && value !== null ? JSON.stringify(value).slice(0, 200) : (value ?? null));
