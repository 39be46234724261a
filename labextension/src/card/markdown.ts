/** Markdown as elements: CommonMark with tables, without HTML, then sanitised. Nothing is loaded, no script runs, links tell nothing of the reader.
 *
 * The same rules as flowbook/cards/html.py: the same elements and attributes, images only as data, and the rest of a very long text as it is, since
 * some texts take a time that grows with the square of their length.
 */
import DOMPurify from "dompurify";
import MarkdownIt from "markdown-it";

export const LONGEST = 20_000; // characters that are read as Markdown
export const IMAGE = /^data:image\/(png|jpeg|gif|webp|bmp|svg\+xml);base64,[A-Za-z0-9+/]+={0,2}$/;
const LINK = /^(https?:\/\/|mailto:|#)/i;

const TAGS = (
    "a b blockquote br caption code dd del details div dl dt em h1 h2 h3 h4 h5 h6 hr i img ins kbd li mark ol p pre s samp small span " +
    "strong sub summary sup table tbody td tfoot th thead tr ul var"
).split(" ");
const ATTRIBUTES = ["href", "title", "src", "alt", "start", "align", "colspan", "rowspan"];

const reader = new MarkdownIt("commonmark", { html: false }).enable(["table", "strikethrough"]);
let cleaner: ReturnType<typeof DOMPurify> | null = null;

/** HTML of a run as elements that can do nothing. */
export function sanitised(html: string): DocumentFragment {
    if (!cleaner) {
        cleaner = DOMPurify(window); // of our own: what others hang on the shared one does not matter here
        cleaner.addHook("uponSanitizeAttribute", (el, data) => {
            const { attrName, attrValue } = data;
            if (attrName === "href") data.keepAttr = el.nodeName === "A" && LINK.test(attrValue);
            else if (attrName === "src") data.keepAttr = el.nodeName === "IMG" && IMAGE.test(attrValue);
        });
        cleaner.addHook("afterSanitizeAttributes", (el) => {
            if (el.nodeName === "A" && el.hasAttribute("href")) {
                el.setAttribute("target", "_blank");
                el.setAttribute("rel", "noopener noreferrer nofollow");
            }
        });
    }
    return cleaner.sanitize(html, {
        ALLOWED_TAGS: TAGS,
        ALLOWED_ATTR: ATTRIBUTES,
        ALLOW_DATA_ATTR: false,
        ALLOW_ARIA_ATTR: false,
        FORBID_CONTENTS: ["script", "style", "iframe", "object", "noscript", "template", "math", "svg"],
        RETURN_DOM_FRAGMENT: true,
    });
}

export function markdown(text: string): DocumentFragment {
    const found = sanitised(reader.render(text.slice(0, LONGEST)));
    if (text.length > LONGEST) {
        const rest = document.createElement("pre");
        rest.textContent = text.slice(LONGEST);
        found.append(rest);
    }
    return found;
}
