/** Draws a card, and draws it again in the same place: what did not change is not touched, so nothing flickers and what was scrolled stays.
 *
 *     const end = renderCard(el, card, host);     again with the next state of the card: it is updated
 *     end();                                      takes it away
 *
 * A fault in one component is shown in its place; the others are drawn. What each component holds is the list FIELDS of flowbook/cards/wire.py.
 */
import type { CardJson, Component } from "../types";
import { chart } from "./chart";
import { viewer } from "./data";
import { arrange, type Drawn, h, list, component as partOf, say, set, show, text } from "./dom";
import { image } from "./image";
import { lines } from "./lines";
import { artifact, progress, valueBox } from "./numbers";
import { code, error, frame, markdownBlock } from "./prose";
import { table } from "./table";
import { timeline } from "./timeline";
import type { Vega } from "./vega-types";

/** What a card needs of the page it is on. */
export interface Host {
    /** Vega, loaded when the first chart asks for it; rejects where it cannot be had. */
    vega(): Promise<Vega>;
    /** Of the page, for charts; all else follows CSS. */
    theme: "light" | "dark";
}

/** Makes the element of a component; `update` fills it. */
export type Make = (part: Component) => Drawn;

type Kind = (host: Host, make: Make) => Drawn;

const KINDS = new Map<string, Kind>([
    ["markdown", markdownBlock],
    ["error", error],
    ["code", code],
    ["html", frame],
    ["table", (_, make) => table(make)],
    ["lines", lines],
    ["vega", (host) => chart(host)],
    ["image", image],
    ["progress", progress],
    ["value", valueBox],
    ["artifact", artifact],
    ["json", () => viewer("json")],
    ["yaml", () => viewer("yaml")],
    ["timeline", (_, make) => timeline(make)],
]);

const COMPONENTS = 500;

interface Card {
    host: Host;
    el: HTMLElement;
    body: HTMLElement;
    note: HTMLElement;
    parts: Map<string, { type: string; drawn: Drawn }>;
}

const cards = new WeakMap<HTMLElement, Card>();

/** Draws `card` as the content of `el`; see above. */
export function renderCard(el: HTMLElement, card: CardJson, host: Host): () => void {
    let known = cards.get(el);
    if (!known) {
        const body = h("div", { class: "fbl-parts" });
        const note = h("div", { class: "fbl-dim" });
        known = { host: { ...host }, el: h("div", { class: "fbl-card" }, body, note), body, note, parts: new Map() };
        cards.set(el, known);
        el.replaceChildren(known.el);
    }
    known.host.theme = host.theme;
    draw(known, card);
    return () => endCard(el);
}

function endCard(el: HTMLElement): void {
    const card = cards.get(el);
    if (!card) return;
    cards.delete(el);
    for (const { drawn } of card.parts.values()) end(drawn);
    card.el.remove();
}

function draw(card: Card, given: CardJson): void {
    const make: Make = (part) => (KINDS.get(part.type) ?? unknown)(card.host, make);
    const kept: Card["parts"] = new Map();
    const shown: Element[] = [];
    const all = list(given.components as unknown as never);
    all.slice(0, COMPONENTS).forEach((each, i) => {
        const part = partOf(each) ?? { type: "?" };
        let id = text(part.id) || `#${i}`;
        while (kept.has(id)) id += "'"; // two of the same id are both shown
        const before = card.parts.get(id);
        const now = before && before.type === part.type ? before : { type: part.type, drawn: made(make, part) };
        updated(now, part);
        set(now.drawn.el, "data-component", id);
        kept.set(id, now);
        shown.push(now.drawn.el);
    });
    for (const [id, before] of card.parts) if (kept.get(id) !== before) end(before.drawn);
    card.parts = kept;
    arrange(card.body, shown);
    const left = (typeof given.left_out === "number" ? given.left_out : 0) + Math.max(all.length - COMPONENTS, 0);
    say(card.note, left ? `${left.toLocaleString("en-US")} more components are left out` : all.length ? "" : "nothing is shown yet");
    show(card.note, left > 0 || !all.length);
}

function made(make: Make, part: Component): Drawn {
    try {
        return make(part);
    } catch (fault) {
        return failed(part, fault);
    }
}

function updated(now: { drawn: Drawn }, part: Component): void {
    try {
        now.drawn.update(part);
    } catch (fault) {
        end(now.drawn);
        now.drawn = failed(part, fault);
    }
}

function failed(part: Component, fault: unknown): Drawn {
    const drawn = error();
    const say = (): void => drawn.update({ type: "error", title: `this ${part.type} cannot be drawn`, text: fault instanceof Error ? fault.message : String(fault) });
    say();
    return { el: drawn.el, update: say };
}

function unknown(): Drawn {
    const drawn = error();
    return { el: drawn.el, update: (part) => drawn.update({ type: "error", title: "a component of an unknown type", text: part.type }) };
}

function end(drawn: Drawn): void {
    try {
        drawn.end?.();
    } catch {
        // it is taken away all the same
    }
    drawn.el.remove();
}
