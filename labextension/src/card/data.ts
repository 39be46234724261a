/** Free data: JSON as a tree that is opened where one looks, YAML as text. */
import type { Component, Json } from "../types";
import { type Drawn, h, record, same, say, set, show, text } from "./dom";

const OPENED = 200; // parts that are drawn opened; below that the tree is closed
const LISTED = 200; // parts of one list or object that are drawn unasked
const YAML_TEXT = 200_000; // characters
const HEIGHT = /^\d{1,5}(\.\d{1,3})?(px|em|rem|vh|%)$/;

export function viewer(kind: "json" | "yaml"): Drawn {
    const title = h("summary");
    const copy = h("button", { type: "button", class: "fbl-button" }, "copy");
    const body = h("div", { class: "fbl-code fbl-data", tabindex: 0, role: "group", "aria-label": kind });
    const inner = h("details", { open: true }, title, body);
    const el = h("div", { class: "fbl-block" }, inner, copy);
    let last: Json | undefined;
    const written = (): string => (kind === "json" ? JSON.stringify(last ?? null, null, 2) : yaml(last ?? null));
    copy.addEventListener("click", () => void copied(written(), copy));
    return {
        el,
        update(part: Component) {
            say(title, text(part.title) || kind.toUpperCase());
            const height = text(part.max_height);
            body.style.maxHeight = HEIGHT.test(height) ? height : "";
            set(title, "class", part.collapsible === false && !text(part.title) ? "fbl-hidden" : null);
            show(copy, part.copy !== false);
            if (last !== undefined && same(last, part.data ?? null)) return;
            last = part.data ?? null;
            if (kind === "yaml") say(body, clipped(yaml(last)));
            else body.replaceChildren(tree(last, { left: OPENED }));
        },
    };
}

async function copied(written: string, button: HTMLElement): Promise<void> {
    try {
        await navigator.clipboard.writeText(written);
        say(button, "copied");
    } catch {
        say(button, "the browser does not let it be copied");
    }
    setTimeout(() => say(button, "copy"), 2_000);
}

const clipped = (all: string): string =>
    all.length <= YAML_TEXT ? all : `${all.slice(0, YAML_TEXT)}\n… (${(all.length - YAML_TEXT).toLocaleString("en-US")} characters left out)`;

// ---- JSON ----------------------------------------------------------------------------------------------------------

function tree(value: Json, budget: { left: number }): Node {
    if (typeof value !== "object" || value === null) return leaf(value);
    const entries: [string, Json][] = Array.isArray(value) ? value.map((part, i) => [String(i), part]) : Object.entries(value);
    const count = `${entries.length.toLocaleString("en-US")} ${Array.isArray(value) ? "item" : "entr"}${Array.isArray(value) ? (entries.length === 1 ? "" : "s") : entries.length === 1 ? "y" : "ies"}`;
    if (!entries.length) return h("span", { class: "fbl-dim" }, Array.isArray(value) ? "[]" : "{}");
    const short = brief(value);
    if (short) return short;
    budget.left -= Math.min(entries.length, LISTED);
    const open = budget.left >= 0;
    const el = h("details", { class: "fbl-tree", open }, h("summary", {}, h("span", { class: "fbl-dim" }, Array.isArray(value) ? `[ ${count} ]` : `{ ${count} }`)));
    const fill = (): void => {
        if (el.children.length === 1) fillTree(el, entries, budget);
    };
    if (open) fill();
    else el.addEventListener("toggle", () => ((budget.left = OPENED), fill()), { once: true });
    return el;
}

const ON_A_LINE = 64; // characters

/** A short list or object of plain values on one line; null if it is not that. */
function brief(value: Json[] | { [name: string]: Json }): HTMLElement | null {
    const parts = Object.values(value);
    if (parts.length > 12 || parts.some((part) => typeof part === "object" && part !== null)) return null;
    if (JSON.stringify(value).length > ON_A_LINE) return null;
    const isList = Array.isArray(value);
    const el = h("span", {}, isList ? "[" : "{ ");
    Object.entries(value).forEach(([name, part], i) => {
        if (i) el.append(", ");
        if (!isList) el.append(h("bdi", { class: "fbl-key" }, name), ": ");
        el.append(leaf(part as Exclude<Json, object> | null));
    });
    el.append(isList ? "]" : " }");
    return el;
}

function fillTree(el: HTMLElement, entries: [string, Json][], budget: { left: number }, from = 0): void {
    for (const [name, part] of entries.slice(from, from + LISTED)) {
        el.append(h("div", { class: "fbl-entry" }, h("bdi", { class: "fbl-key" }, name), ": ", tree(part, budget)));
    }
    const left = entries.length - from - LISTED;
    if (left <= 0) return;
    const more = h("button", { type: "button", class: "fbl-button" }, `${left.toLocaleString("en-US")} more`);
    more.addEventListener("click", () => {
        more.remove();
        fillTree(el, entries, { left: OPENED }, from + LISTED);
    });
    el.append(more);
}

function leaf(value: Exclude<Json, object> | null): HTMLElement {
    const kind = value === null ? "keyword" : typeof value === "string" ? "string" : typeof value === "number" ? "number" : "keyword";
    return h("span", { class: `fbl-py-${kind}` }, JSON.stringify(value));
}

// ---- YAML ----------------------------------------------------------------------------------------------------------

const PLAIN = /^[A-Za-z_/][A-Za-z0-9_ ./@+-]*$/;
const WORDS = new Set(["true", "false", "null", "yes", "no", "on", "off", "y", "n"]);

/** JSON in YAML's block form, the same as flowbook/cards/html.py writes it. Pure. */
export function yaml(value: Json): string {
    return typeof value === "string" ? value : lines(value, 0).join("\n");
}

function lines(value: Json, depth: number): string[] {
    const pad = "  ".repeat(depth);
    const found = record(value);
    if (found && Object.keys(found).length) return Object.entries(found).flatMap(([name, part]) => entry(`${pad}${scalar(name)}:`, part, depth));
    if (Array.isArray(value) && value.length) return value.flatMap((part) => entry(`${pad}-`, part, depth));
    return [pad + scalar(value)];
}

function entry(start: string, value: Json, depth: number): string[] {
    const many = typeof value === "object" && value !== null && Object.keys(value).length > 0;
    return many ? [start, ...lines(value, depth + 1)] : [`${start} ${scalar(value)}`];
}

function scalar(value: Json): string {
    if (typeof value === "string" && PLAIN.test(value) && value.trim() === value && !WORDS.has(value.toLowerCase())) return value;
    return JSON.stringify(value);
}
