/** One number or one value: progress bars, value boxes, artifacts. */
import { type Drawn, h, morph, number, say, set, show, shown, text } from "./dom";
import { sanitised } from "./markdown";

export function progress(): Drawn {
    const fill = h("div", { class: "fbl-fill" });
    const bar = h("div", { class: "fbl-bar", role: "progressbar" }, fill);
    const label = h("span", { class: "fbl-name" });
    const amount = h("b");
    const details = h("span", { class: "fbl-dim" });
    const el = h("div", { class: "fbl-progress" }, h("div", { class: "fbl-row" }, label, amount, details), bar);
    return {
        el,
        update(part) {
            const most = number(part.max) ?? 0;
            const value = number(part.value) ?? 0;
            const share = most > 0 ? Math.min(Math.max(value / most, 0), 1) : null;
            const unit = text(part.unit);
            const count = shown(value) + (most > 0 ? ` / ${shown(most)}` : "") + (unit ? ` ${unit}` : "");
            const more = text(part.details);
            say(label, text(part.label));
            show(label, text(part.label) !== "");
            say(amount, share === null ? count : `${Math.floor(share * 100)} %`);
            say(details, more || (share === null ? "" : count));
            set(bar, "class", share === null ? "fbl-bar fbl-unknown" : share >= 1 ? "fbl-bar fbl-full" : "fbl-bar");
            set(bar, "aria-valuenow", share === null ? null : Math.floor(share * 100));
            set(bar, "aria-label", text(part.label) || "progress");
            set(bar, "aria-valuetext", [count, more].filter(Boolean).join(", "));
            fill.style.transform = `scaleX(${share === null ? 1 : share.toFixed(4)})`;
        },
    };
}

const THEMES = ["default", "success", "warning", "danger", "bg-gradient-indigo-purple"];

export function valueBox(): Drawn {
    const title = h("div", { class: "fbl-dim" });
    const value = h("div", { class: "fbl-big" });
    const change = h("span", { class: "fbl-change" });
    const subtitle = h("span", { class: "fbl-dim" });
    const below = h("div", { class: "fbl-below" }, change, subtitle);
    const el = h("div", { class: "fbl-value" }, title, value, below);
    return {
        el,
        update(part) {
            const theme = text(part.theme);
            set(el, "class", `fbl-value fbl-theme-${THEMES.includes(theme) ? theme : "default"}`);
            say(title, text(part.title));
            const given = part.value;
            say(value, typeof given === "number" ? shown(given) : typeof given === "boolean" ? String(given) : text(given));
            say(change, text(part.change));
            show(change, text(part.change) !== "");
            say(subtitle, text(part.subtitle));
            show(below, text(part.subtitle) !== "" || text(part.change) !== "");
        },
    };
}

export function artifact(): Drawn {
    const name = h("strong");
    const kind = h("span", { class: "fbl-dim" });
    const repr = h("pre", { class: "fbl-code" });
    const rich = h("div", { class: "fbl-scroll fbl-prose", tabindex: 0, role: "group", "aria-label": "preview" });
    const el = h("div", { class: "fbl-artifact" }, h("div", { class: "fbl-row" }, name, kind), repr, rich);
    let last: string | null = null;
    return {
        el,
        update(part) {
            say(name, text(part.name));
            show(name, text(part.name) !== "");
            say(kind, text(part.of));
            const html = text(part.html);
            say(repr, html ? "" : text(part.text));
            show(repr, !html);
            show(rich, html !== "");
            if (html !== last) morph(rich, sanitised(html));
            last = html;
        },
    };
}
