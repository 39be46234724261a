/** Making and changing elements. Text always goes in as text: nothing here, and nothing that uses it, writes markup.
 *
 * Also the readers of a component's fields: a card was written by somebody else, so a field is what it should be, or nothing.
 */
import type { Component, Json } from "../types";

export type Attributes = Record<string, string | number | boolean | null | undefined>;
export type Child = Node | string | null | undefined | false;

const SVG = "http://www.w3.org/2000/svg";

function filled<E extends Element>(made: E, attributes: Attributes, children: Child[]): E {
    for (const [name, value] of Object.entries(attributes)) set(made, name, value);
    for (const child of children) if (child) made.append(child);
    return made;
}

/** `h("p", {class: "x"}, "text", other)` */
export function h<K extends keyof HTMLElementTagNameMap>(tag: K, attributes: Attributes = {}, ...children: Child[]): HTMLElementTagNameMap[K] {
    return filled(document.createElement(tag), attributes, children);
}

export function s<K extends keyof SVGElementTagNameMap>(tag: K, attributes: Attributes = {}, ...children: Child[]): SVGElementTagNameMap[K] {
    return filled(document.createElementNS(SVG, tag), attributes, children);
}

/** Sets an attribute only if it changes; false and null take it away. */
export function set(el: Element, name: string, value: string | number | boolean | null | undefined): void {
    if (value === null || value === undefined || value === false) {
        if (el.hasAttribute(name)) el.removeAttribute(name);
        return;
    }
    const text = value === true ? "" : String(value);
    if (el.getAttribute(name) !== text) el.setAttribute(name, text);
}

/** Sets the text of an element only if it changes, and keeps its text node, so that a selection in it stays. */
export function say(el: Element, text: string): void {
    const only = el.childNodes.length === 1 ? el.firstChild : null;
    if (only instanceof Text) {
        if (only.data !== text) only.data = text;
    } else if (text !== "" || el.firstChild) {
        el.textContent = text;
    }
}

export function show(el: HTMLElement, shown: boolean): void {
    if (el.hidden === shown) el.hidden = !shown;
}

/** Makes the children of `el` those of `wanted`, and changes as little as possible. `wanted` is used up. */
export function morph(el: ParentNode & Node, wanted: Node): void {
    let old: ChildNode | null = el.firstChild;
    for (const next of [...wanted.childNodes]) {
        if (old && old.nodeType === next.nodeType && old.nodeName === next.nodeName) {
            if (old instanceof Element) {
                for (const { name } of [...old.attributes]) if (!(next as Element).hasAttribute(name) && name !== "open") old.removeAttribute(name);
                for (const { name, value } of (next as Element).attributes) set(old, name, value);
                morph(old, next);
            } else if (old.nodeValue !== next.nodeValue) {
                old.nodeValue = next.nodeValue;
            }
            old = old.nextSibling;
        } else {
            el.insertBefore(next, old);
        }
    }
    while (old) {
        const after: ChildNode | null = old.nextSibling;
        old.remove();
        old = after;
    }
}

/** Puts these elements into `el` in this order, and moves only what stands elsewhere: what is moved loses its scroll position. */
export function arrange(el: Element, wanted: readonly Element[]): void {
    const kept = new Set<Element>(wanted);
    for (const child of [...el.children]) if (!kept.has(child)) child.remove();
    let at: Element | null = el.firstElementChild;
    for (const child of wanted) {
        if (child === at) at = at.nextElementSibling;
        else el.insertBefore(child, at);
    }
}

// ---- fields --------------------------------------------------------------------------------------------------------

export const text = (value: Json | undefined): string => (typeof value === "string" ? value : "");
export const number = (value: Json | undefined): number | null => (typeof value === "number" && Number.isFinite(value) ? value : null);
export const list = (value: Json | undefined): Json[] => (Array.isArray(value) ? value : []);
export const record = (value: Json | undefined): { [name: string]: Json } | null =>
    typeof value === "object" && value !== null && !Array.isArray(value) ? value : null;
export const component = (value: Json | undefined): Component | null => {
    const found = record(value);
    return found && typeof found.type === "string" ? (found as Component) : null;
};

/** Whether two values of JSON are the same. */
export function same(a: unknown, b: unknown): boolean {
    if (a === b) return true;
    if (typeof a !== "object" || typeof b !== "object" || a === null || b === null) return false;
    if (Array.isArray(a) || Array.isArray(b)) {
        return Array.isArray(a) && Array.isArray(b) && a.length === b.length && a.every((each, i) => same(each, b[i]));
    }
    const names = Object.keys(a);
    if (names.length !== Object.keys(b).length) return false;
    return names.every((name) => Object.hasOwn(b, name) && same((a as Record<string, unknown>)[name], (b as Record<string, unknown>)[name]));
}

/** A number as people read it: 12,345.6 and 0.000123.
 *
 *     shown(1234567) === "1,234,567", shown(0.1 + 0.2) === "0.3"
 */
export function shown(value: number, digits = 6): string {
    if (Number.isInteger(value) && Math.abs(value) < 1e15) return value.toLocaleString("en-US");
    const size = Math.abs(value);
    if (size >= 1e6 || size < 1e-4) return value.toExponential(4).replace(/\.?0+e/, "e").replace("e+", "e");
    return String(Number(value.toPrecision(digits)));
}

/** One thing that is drawn, and redrawn with other fields in the same place. */
export interface Drawn {
    readonly el: HTMLElement;
    update(part: Component): void;
    /** Called once, when it is taken away. */
    end?(): void;
}
