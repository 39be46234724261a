/** Text: Markdown, errors, code, and HTML of users, which stands in a frame of its own. */
import type { Component } from "../types";
import { paint } from "../text";
import { type Drawn, h, morph, number, say, set, show, text } from "./dom";
import { markdown, pageOf } from "./markdown";

export function markdownBlock(): Drawn {
    const el = h("div", { class: "fbl-prose" });
    let last: string | null = null;
    return {
        el,
        update(part) {
            const now = text(part.text);
            if (now !== last) morph(el, markdown(now));
            last = now;
        },
    };
}

export function error(): Drawn {
    const title = h("strong");
    const more = h("pre", { class: "fbl-code" });
    const el = h("div", { class: "fbl-error", role: "group" }, h("div", { class: "fbl-title" }, h("span", { "aria-hidden": "true" }, "✗ "), title), more);
    let last: string | null = null;
    return {
        el,
        update(part) {
            say(title, text(part.title) || "Error");
            const now = text(part.text);
            show(more, now !== "");
            if (now !== last) paint(more, now);
            last = now;
        },
    };
}

// ---- code ----------------------------------------------------------------------------------------------------------

const KEYWORDS = new Set(
    (
        "and as assert async await break class continue def del elif else except finally for from global if import in is lambda match nonlocal not or " +
        "pass raise return try while with yield True False None self"
    ).split(" "),
);
const TOKEN = /(#[^\n]*)|("""[\s\S]*?(?:"""|$)|'''[\s\S]*?(?:'''|$)|"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?)|(\b\d[\w.]*)|(@?\b[A-Za-z_]\w*)/g;

/** Python with its comments, texts, numbers and keywords marked. */
export function python(source: string): (Node | string)[] {
    const found: (Node | string)[] = [];
    let at = 0;
    for (const token of source.matchAll(TOKEN)) {
        const [whole, comment, string, digits] = token;
        const kind = comment ? "comment" : string ? "string" : digits ? "number" : KEYWORDS.has(whole) ? "keyword" : whole.startsWith("@") ? "decorator" : "";
        if (!kind) continue;
        found.push(source.slice(at, token.index), h("span", { class: `fbl-py-${kind}` }, whole));
        at = token.index + whole.length;
    }
    found.push(source.slice(at));
    return found;
}

const COLOURED = 20_000; // characters of code

export function code(): Drawn {
    const inner = h("code");
    const el = h("div", { class: "fbl-block" }, h("pre", { class: "fbl-code", tabindex: 0 }, inner));
    let last: string | null = null;
    return {
        el,
        update(part) {
            const now = text(part.text);
            if (now !== last && part.language === "python") inner.replaceChildren(...python(now.slice(0, COLOURED)), now.slice(COLOURED));
            else if (now !== last) paint(inner, now); // what was printed
            last = now;
        },
    };
}

// ---- HTML of users -------------------------------------------------------------------------------------------------

export const POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:";
const HEIGHT = 400;

/** What the frame shows: in a frame without scripts a second one, so that the policy of the first holds for wherever a link in the second leads. */
export function framed(html: string): string {
    const head = `<meta http-equiv="Content-Security-Policy" content="${POLICY}"><meta http-equiv="x-dns-prefetch-control" content="off">`;
    const inner = attribute(`${head}<style>body{font:14px/1.5 system-ui,sans-serif}</style>${pageOf(html)}`);
    const fill = "html,body{margin:0;height:100%}iframe{border:0;width:100%;height:100%;display:block;color-scheme:light}";
    return `${head}<style>${fill}</style><iframe sandbox="" referrerpolicy="no-referrer" title="HTML of the step" srcdoc="${inner}"></iframe>`;
}

const attribute = (value: string): string => value.replaceAll("&", "&amp;").replaceAll('"', "&quot;");

export function frame(): Drawn {
    const inner = h("iframe", { sandbox: "", referrerpolicy: "no-referrer", title: "HTML of the step" });
    const el = h("div", { class: "fbl-frame" }, inner);
    let last: string | null = null;
    return {
        el,
        update(part: Component) {
            set(inner, "height", Math.round(Math.min(Math.max(number(part.height) ?? HEIGHT, 20), 4000)));
            const now = text(part.html);
            if (now !== last) inner.srcdoc = framed(now);
            last = now;
        },
    };
}
