/** Lines that grow while a step runs: SVG of our own, drawn anew at every update by setting a few paths. Lines differ by dashes, too, never by colour alone. */
import type { Component, Json } from "../types";
import { arrange, type Drawn, h, list, number, record, s, say, set, show, shown, text } from "./dom";
import { type Line, label, latest, nearest, path, place, type Scale, scale, ticks, value } from "./scale";

const HEIGHT = 190;
const WIDTH = 520; // where the width is not known
const EDGE = { left: 52, right: 12, top: 10, bottom: 26 };
const LABEL = 14; // pixels more below where the x axis has a name
const DASHES = ["", "6 3", "2 3", "8 3 2 3", "1 3", "10 4", "4 2", "12 3 3 3"];
const COLOURS = 8; // --fbl-line-0 …

interface Row {
    el: HTMLElement;
    name: HTMLElement;
    value: HTMLElement;
}

export function lines(): Drawn {
    const title = h("figcaption", { class: "fbl-title" });
    const legend = h("ul", { class: "fbl-legend" });
    const axes = s("g", { class: "fbl-axes" });
    const curves = s("g", { class: "fbl-curves" });
    const cursor = s("g", { class: "fbl-cursor", visibility: "hidden" });
    const drawing = s("svg", { class: "fbl-lines", role: "img" }, axes, curves, cursor);
    const empty = h("div", { class: "fbl-dim" }, "no number yet");
    const note = h("div", { class: "fbl-dim" });
    const el = h("figure", { class: "fbl-figure" }, title, drawing, empty, legend, note);
    const paths: SVGPathElement[] = [];
    const rows: Row[] = [];
    let shownLines: Line[] = [];
    let scales: { x: Scale; y: Scale } | null = null;
    let last: Component | null = null;

    const draw = (): void => {
        if (!last) return;
        shownLines = seriesOf(last.series);
        const width = Math.max(drawing.clientWidth || WIDTH, 160);
        scales = scalesOf(shownLines, width);
        const height = HEIGHT + (text(last.x_label) ? LABEL : 0);
        set(drawing, "viewBox", `0 0 ${width} ${height}`);
        set(drawing, "height", height);
        const name = text(last.title);
        say(title, name);
        show(title, name !== "" && !(shownLines.length === 1 && shownLines[0]?.name === name));
        drawing.toggleAttribute("hidden", !scales);
        show(empty, !scales);
        say(note, text(last.left_out));
        show(note, text(last.left_out) !== "");
        set(drawing, "aria-label", described(name, shownLines));
        if (scales) {
            drawAxes(axes, scales, width, text(last.x_label));
            drawCurves(curves, paths, shownLines, scales);
        }
        drawLegend(legend, rows, shownLines, null);
    };
    drawing.addEventListener("pointermove", (event) => {
        if (!scales) return;
        const box = drawing.getBoundingClientRect();
        const at = value(scales.x, ((event.clientX - box.left) / (box.width || 1)) * (drawing.clientWidth || WIDTH));
        drawCursor(cursor, shownLines, scales, at);
        drawLegend(legend, rows, shownLines, at);
    });
    drawing.addEventListener("pointerleave", () => {
        set(cursor, "visibility", "hidden");
        drawLegend(legend, rows, shownLines, null);
    });
    let width = 0;
    const resized = new ResizeObserver(() => {
        if (drawing.clientWidth === width) return;
        width = drawing.clientWidth;
        draw();
    });
    resized.observe(drawing);
    return {
        el,
        update(part) {
            last = part;
            draw();
        },
        end: () => resized.disconnect(),
    };
}

function seriesOf(given: Json | undefined): Line[] {
    return list(given).flatMap((each) => {
        const found = record(each);
        if (!found) return [];
        const pairs = list(found.x).map((x, i): [number | null, number | null] => [number(x), number(list(found.y)[i])]);
        const kept = pairs.filter((pair): pair is [number, number | null] => pair[0] !== null);
        return [{ name: text(found.name), x: kept.map(([x]) => x), y: kept.map(([, y]) => y), count: number(found.count) ?? kept.length }];
    });
}

function scalesOf(all: Line[], width: number): { x: Scale; y: Scale } | null {
    const known = function* (axis: "x" | "y"): Generator<number> {
        for (const line of all) {
            for (let i = 0; i < line.x.length; i++) {
                const y = line.y[i];
                if (y !== null && y !== undefined) yield axis === "y" ? y : (line.x[i] as number);
            }
        }
    };
    const x = scale(known("x"), EDGE.left, width - EDGE.right);
    const y = scale(known("y"), HEIGHT - EDGE.bottom, EDGE.top, 0.04);
    return x && y ? { x, y } : null;
}

function described(title: string, all: Line[]): string {
    const ends = all.slice(0, 8).map((line) => `${line.name} ${((end) => (end === null ? "without a number" : shown(end)))(latest(line))}`);
    return `${title || "line chart"}, latest: ${ends.join(", ")}`.slice(0, 500);
}

function drawAxes(axes: SVGGElement, { x, y }: { x: Scale; y: Scale }, width: number, xLabel: string): void {
    const bottom = HEIGHT - EDGE.bottom;
    const parts: SVGElement[] = [];
    for (const at of ticks(y.low, y.high, 4)) {
        const up = Math.round(place(y, at)) + 0.5;
        parts.push(s("line", { x1: EDGE.left, x2: width - EDGE.right, y1: up, y2: up }));
        parts.push(s("text", { x: EDGE.left - 6, y: up, dy: "0.32em", "text-anchor": "end" }, label(at)));
    }
    const shownTicks = ticks(x.low, x.high, Math.max(Math.floor(width / 90), 2));
    for (const at of shownTicks) parts.push(s("text", { x: place(x, at), y: bottom + 15, "text-anchor": "middle" }, label(at)));
    if (xLabel) parts.push(s("text", { x: (EDGE.left + width - EDGE.right) / 2, y: HEIGHT + LABEL - 4, "text-anchor": "middle" }, xLabel));
    parts.push(s("line", { class: "fbl-base", x1: EDGE.left, x2: width - EDGE.right, y1: bottom + 0.5, y2: bottom + 0.5 }));
    axes.replaceChildren(...parts);
}

function drawCurves(curves: SVGGElement, paths: SVGPathElement[], all: Line[], { x, y }: { x: Scale; y: Scale }): void {
    for (const gone of paths.splice(all.length)) gone.remove();
    all.forEach((line, i) => {
        const curve = (paths[i] ??= curves.appendChild(s("path")));
        set(curve, "class", `fbl-line-${i % COLOURS}`);
        set(curve, "stroke-dasharray", DASHES[i % DASHES.length] || null);
        set(curve, "d", path(line, x, y));
    });
}

function drawCursor(cursor: SVGGElement, all: Line[], { x, y }: { x: Scale; y: Scale }, at: number): void {
    const found = all.map((line) => nearest(line, at));
    const first = found.findIndex((i) => i !== null);
    if (first < 0) return;
    const where = place(x, (all[first] as Line).x[found[first] as number] as number);
    const parts: SVGElement[] = [s("line", { x1: where, x2: where, y1: EDGE.top, y2: HEIGHT - EDGE.bottom })];
    all.forEach((line, i) => {
        const point = found[i];
        if (point === null || point === undefined) return;
        parts.push(s("circle", { class: `fbl-line-${i % COLOURS}`, cx: place(x, line.x[point] as number), cy: place(y, line.y[point] as number), r: 3 }));
    });
    cursor.replaceChildren(...parts);
    set(cursor, "visibility", "visible");
}

/** Names and numbers: the latest, or those at the cursor. */
function drawLegend(legend: HTMLElement, rows: Row[], all: Line[], at: number | null): void {
    rows.length = Math.min(rows.length, all.length);
    all.forEach((line, i) => {
        const row = (rows[i] ??= legendRow());
        const swatch = row.el.querySelector("line");
        if (swatch) {
            set(swatch, "class", `fbl-line-${i % COLOURS}`);
            set(swatch, "stroke-dasharray", DASHES[i % DASHES.length] || null);
        }
        const point = at === null ? null : nearest(line, at);
        const found = at === null ? latest(line) : point === null ? null : (line.y[point] ?? null);
        say(row.name, line.name);
        say(row.value, (found === null ? "–" : shown(found, 5)) + (point === null ? "" : ` at ${shown(line.x[point] as number)}`));
    });
    arrange(legend, rows.map((row) => row.el));
}

function legendRow(): Row {
    const name = h("bdi");
    const value = h("b");
    const swatch = s("svg", { width: 20, height: 8, "aria-hidden": "true" }, s("line", { x1: 1, x2: 19, y1: 4, y2: 4 }));
    const el = h("li", {});
    el.append(swatch, name, value);
    return { el, name, value };
}
