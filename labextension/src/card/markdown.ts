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

/** A whole page of a user's, made ready for a frame in which it can do nothing anyway: what would ask a network is taken out, since a policy
 * does not cover all that a browser does early. Styles stay.
 */
export function pageOf(html: string): string {
    pages ??= pageCleaner();
    return pages.sanitize(html, {
        WHOLE_DOCUMENT: true,
        FORCE_BODY: false,
        ADD_TAGS: ["style", "use"],
        FORBID_TAGS: ["link", "meta", "base", "form", "image", "feimage", "video", "audio", "source", "track", "picture"],
        ADD_ATTR: ["open"],
    });
}

const ADDRESSES = new Set("href xlink:href src srcset poster background action formaction data cite longdesc ping lowsrc".split(" "));
const IN_ITSELF = /^(#|data:image\/(png|jpeg|gif|webp|bmp|svg\+xml)[;,])/i;
let pages: ReturnType<typeof DOMPurify> | null = null;

function pageCleaner(): ReturnType<typeof DOMPurify> {
    const found = DOMPurify(window);
    found.addHook("uponSanitizeAttribute", (_, data) => {
        if (ADDRESSES.has(data.attrName)) data.keepAttr = IN_ITSELF.test(data.attrValue);
        else data.attrValue = tame(data.attrValue);
    });
    found.addHook("uponSanitizeElement", (el, { tagName }) => {
        if (tagName === "style") el.textContent = tame(el.textContent ?? "");
    });
    return found;
}

/** CSS without addresses but of data; an escaped one is left to the policy. */
const tame = (css: string): string => css.replace(/@import/gi, "@-import").replace(/url\(\s*(?!["']?\s*(?:data:|#))/gi, "url(data:,").replace(/image-set\(/gi, "-image-set(");

export function markdown(text: string): DocumentFragment {
    const found = sanitised(reader.render(text.slice(0, LONGEST)));
    if (text.length > LONGEST) {
        const rest = document.createElement("pre");
        rest.textContent = text.slice(LONGEST);
        found.append(rest);
    }
    return found;
}
