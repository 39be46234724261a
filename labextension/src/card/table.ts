/** Tables: numbers to the right, cells that are components drawn and redrawn in their place, and of many rows the first until more are asked for. */
import type { Component, Json } from "../types";
import type { Make } from "./index";
import { arrange, component, type Drawn, h, list, number, say, set, show, shown, text } from "./dom";

const FIRST = 100; // rows that are drawn unasked

interface Cell {
    el: HTMLTableCellElement;
    drawn?: Drawn;
    type?: string;
}

export function table(make: Make): Drawn {
    const caption = h("div", { class: "fbl-dim" });
    const more = h("button", { type: "button", class: "fbl-button" });
    const head = h("tr");
    const body = h("tbody");
    const inner = h("table", {}, h("thead", {}, head), body);
    const el = h("div", { class: "fbl-table" }, h("div", { class: "fbl-scroll", tabindex: 0, role: "group", "aria-label": "table" }, inner), more, caption);
    const rows: Cell[][] = [];
    const headers: HTMLElement[] = [];
    let most = FIRST;
    let last: Component | null = null;

    const draw = (part: Component): void => {
        const given = list(part.rows);
        const numeric = columnsOfNumbers(given);
        drawHead(head, headers, list(part.headers).map(text), numeric);
        const wanted = given.slice(0, most);
        for (const row of rows.splice(wanted.length)) for (const cell of row) cell.drawn?.end?.();
        wanted.forEach((row, i) => drawRow(body, (rows[i] ??= []), i, list(row), numeric, make));
        while (body.rows.length > wanted.length) body.lastElementChild?.remove();
        const hidden = given.length - wanted.length;
        show(more, hidden > 0);
        say(more, `show ${hidden.toLocaleString("en-US")} more rows`);
        const left = [note(part.rows_left_out, "row"), note(part.columns_left_out, "column")].filter(Boolean);
        say(caption, left.length ? `not kept: ${left.join(" and ")}` : "");
        show(caption, left.length > 0);
    };
    more.addEventListener("click", () => {
        most = Number.POSITIVE_INFINITY;
        if (last) draw(last);
    });
    return {
        el,
        update(part) {
            last = part;
            draw(part);
        },
        end: () => rows.flat().forEach((cell) => cell.drawn?.end?.()),
    };
}

function note(count: Json | undefined, what: string): string {
    const n = number(count);
    return n ? `${n.toLocaleString("en-US")} more ${what}${n === 1 ? "" : "s"}` : "";
}

/** Whether all that stands in a column is a number; such a column is aligned to the right, its header too. */
function columnsOfNumbers(rows: Json[]): boolean[] {
    const found: boolean[] = [];
    for (const row of rows.slice(0, FIRST)) {
        list(row).forEach((value, i) => {
            if (value !== null) found[i] = (found[i] ?? true) && typeof value === "number";
        });
    }
    return found;
}

function drawHead(head: HTMLElement, cells: HTMLElement[], names: string[], numeric: boolean[]): void {
    cells.length = Math.min(cells.length, names.length);
    names.forEach((name, i) => {
        const cell = (cells[i] ??= h("th", { scope: "col" }));
        say(cell, name);
        set(cell, "class", numeric[i] ? "fbl-number" : null);
    });
    arrange(head, cells);
    show(head.parentElement as HTMLElement, names.some(Boolean));
}

function drawRow(body: HTMLTableSectionElement, cells: Cell[], at: number, values: Json[], numeric: boolean[], make: Make): void {
    const row = body.rows[at] ?? body.appendChild(h("tr"));
    for (const cell of cells.splice(values.length)) {
        cell.drawn?.end?.();
        cell.el.remove();
    }
    values.forEach((value, i) => {
        const cell = (cells[i] ??= { el: row.appendChild(h("td")) });
        drawCell(cell, value, numeric[i] ?? false, make);
    });
}

function drawCell(cell: Cell, value: Json, right: boolean, make: Make): void {
    set(cell.el, "class", right ? "fbl-number" : null);
    const part = component(value);
    if (part === null) {
        cell.drawn?.end?.();
        delete cell.drawn, delete cell.type;
        say(cell.el, typeof value === "number" ? shown(value) : value === null ? "" : String(value));
        return;
    }
    if (!cell.drawn || cell.type !== part.type) {
        cell.drawn?.end?.();
        cell.drawn = make(part);
        cell.type = part.type;
        cell.el.replaceChildren(cell.drawn.el);
    }
    cell.drawn.update(part);
}
