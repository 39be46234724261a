/** Events, the latest first. An event keeps its element while others are added above it. */
import type { Json } from "../types";
import type { Make } from "./index";
import { arrange, component, type Drawn, h, list, number, record, same, say, set, show, text } from "./dom";

const THEMES = ["default", "success", "warning", "error", "info", "primary", "secondary", "tool_call", "ai_response"];
const FIRST = 200; // events that are drawn

interface Event {
    el: HTMLElement;
    given: Json;
    parts: Drawn[];
}

export function timeline(make: Make): Drawn {
    const title = h("strong");
    const about = h("span", { class: "fbl-dim" });
    const listed = h("ol", { class: "fbl-events" });
    const el = h("div", {}, h("div", { class: "fbl-row" }, title, about), h("div", { class: "fbl-scroll", tabindex: 0, role: "group", "aria-label": "events" }, listed));
    let known = new Map<number, Event>();
    return {
        el,
        update(part) {
            const given = list(part.events);
            const count = Math.max(number(part.count) ?? 0, given.length);
            say(title, text(part.title));
            show(title, text(part.title) !== "");
            const words = [`${count.toLocaleString("en-US")} event${count === 1 ? "" : "s"}`];
            if (count > given.length) words.push(`the last ${given.length.toLocaleString("en-US")} are kept`);
            if (given.length > FIRST) words.push(`the last ${FIRST} are shown`);
            if (part.finished === true) words.push("finished");
            say(about, words.join(" · "));
            const kept = new Map<number, Event>();
            given.slice(0, FIRST).forEach((each, i) => {
                const number = count - i; // the same for an event as long as it is shown
                const before = known.get(number);
                kept.set(number, before && same(before.given, each) ? before : drawEvent(each, make));
            });
            for (const [number, event] of known) if (kept.get(number) !== event) for (const part of event.parts) part.end?.();
            known = kept;
            arrange(listed, [...kept.values()].map((event) => event.el));
        },
        end: () => [...known.values()].forEach((event) => event.parts.forEach((part) => part.end?.())),
    };
}

function drawEvent(given: Json, make: Make): Event {
    const event = record(given) ?? {};
    const theme = text(event.theme);
    const priority = text(event.priority);
    const el = h("li", { class: `fbl-event-${THEMES.includes(theme) ? theme : "default"}` });
    const when = clock(number(event.at));
    if (when) el.append(h("time", { class: "fbl-dim" }, when));
    if (priority === "high" || priority === "critical") el.append(h("b", { class: "fbl-priority" }, priority));
    const facts = h("dl");
    for (const [name, value] of Object.entries(record(event.data) ?? {})) {
        facts.append(h("div", {}, h("dt", {}, name), h("dd", {}, typeof value === "string" ? value : JSON.stringify(value))));
    }
    el.append(facts);
    const parts: Drawn[] = [];
    for (const [name, value] of Object.entries(record(event.payloads) ?? {})) {
        const part = component(value);
        if (part) el.append(payload(name, part, make, parts));
    }
    return { el, given, parts };
}

/** A component that is drawn when it is looked at. */
function payload(name: string, part: Parameters<Make>[0], make: Make, parts: Drawn[]): HTMLElement {
    const el = h("details", {}, h("summary", {}, name));
    el.addEventListener(
        "toggle",
        () => {
            const drawn = make(part);
            parts.push(drawn);
            el.append(drawn.el);
            drawn.update(part);
        },
        { once: true },
    );
    set(el, "class", "fbl-payload");
    return el;
}

function clock(at: number | null): string {
    if (at === null) return "";
    const found = new Date(at * 1000);
    return Number.isNaN(found.getTime()) ? "" : found.toLocaleTimeString("en-GB");
}
