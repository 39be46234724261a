/** Images, which stand in the card itself. The next one is decoded before it takes the place of the one that is seen. */
import { type Drawn, h, say, set, show, text } from "./dom";
import { IMAGE } from "./markdown";

const MOST_USES = 50_000; // elements that an SVG may show by `use`, all levels multiplied

export function image(): Drawn {
    const inner = h("img", { class: "fbl-image", decoding: "async" });
    const label = h("figcaption", { class: "fbl-dim" });
    const why = h("div", { class: "fbl-dim" });
    const el = h("figure", { class: "fbl-figure" }, inner, why, label);
    let wanted = "";
    const swap = async (src: string): Promise<void> => {
        const next = new Image();
        next.src = src;
        try {
            await next.decode();
        } catch {
            if (wanted === src) say(why, "this image cannot be read"), show(why, true), show(inner, false);
            return;
        }
        if (wanted !== src) return;
        inner.src = src;
        show(inner, true);
        show(why, false);
    };
    show(why, false);
    show(inner, false);
    return {
        el,
        update(part) {
            const name = text(part.label);
            set(inner, "alt", name || "image");
            say(label, name);
            show(label, name !== "");
            const src = text(part.src);
            if (src === wanted) return;
            wanted = src;
            const trouble = refused(src);
            if (!trouble) {
                void swap(src);
                return;
            }
            say(why, trouble);
            show(why, true);
            show(inner, false);
        },
    };
}

function refused(src: string): string {
    if (!IMAGE.test(src)) return "this image is not in the card itself";
    if (!src.startsWith("data:image/svg")) return "";
    try {
        const bytes = Uint8Array.from(atob(src.slice(src.indexOf(",") + 1)), (letter) => letter.charCodeAt(0));
        const drawing = new DOMParser().parseFromString(new TextDecoder().decode(bytes), "image/svg+xml");
        return uses(drawing) > MOST_USES ? "this SVG repeats itself so often that it would stop the browser" : "";
    } catch {
        return "this image cannot be read";
    }
}

/** How many elements a browser would draw for all `use` of a document, with those inside what they name. */
export function uses(drawing: Document): number {
    const weights = new Map<Element, number>();
    const weigh = (el: Element, path: Set<Element>): number => {
        const known = weights.get(el);
        if (known !== undefined) return known;
        if (path.has(el)) return 0; // what names itself is not drawn
        if (path.size > 200) return 1e9;
        path.add(el);
        let sum = 1;
        for (const child of el.children) sum = Math.min(sum + weigh(child, path), 1e9);
        if (el.localName === "use") {
            const name = (el.getAttribute("href") ?? el.getAttributeNS("http://www.w3.org/1999/xlink", "href") ?? "").replace(/^#/, "");
            const target = name ? drawing.getElementById(name) : null;
            if (target) sum = Math.min(sum + weigh(target, path), 1e9);
        }
        path.delete(el);
        weights.set(el, sum);
        return sum;
    };
    return drawing.documentElement ? weigh(drawing.documentElement, new Set()) : 0;
}
