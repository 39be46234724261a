/** What markdown-it asks of other packages, by what a browser has: 38 KB less in every notebook. The build puts it in their place (build.mjs, `alias`).
 *
 * Of uc.micro its classes of letters, of entities the decoding of one, of punycode.js the two forms of a host, of linkify-it nothing: bare addresses stay text.
 */

export const P = /\p{P}/u;
export const S = /\p{S}/u;
export const Z = /\p{Z}/u;
export const Cc = /\p{Cc}/u;
export const Any = /[\s\S]/u;

const COMMON: Record<string, string> = { "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'", "&nbsp;": "\u00a0" };
const known = new Map(Object.entries(COMMON));

/** `text` is one entity, `&name;` or `&#…;`, as markdown-it's own pattern found it; one that is not known stays as it is. */
export function decodeHTMLStrict(text: string): string {
    let found = known.get(text);
    if (found === undefined) {
        found = /^&[#a-z0-9]+;$/i.test(text) && typeof DOMParser !== "undefined" ? (new DOMParser().parseFromString(text, "text/html").body.textContent ?? text) : text;
        if (known.size < 5_000) known.set(text, found);
    }
    return found;
}

export class LinkifyIt {
    test(): boolean {
        return false;
    }
    match(): null {
        return null;
    }
    matchAtStart(): null {
        return null;
    }
}

const host = (name: string): string => {
    try {
        return new URL(`http://${name}`).hostname || name;
    } catch {
        return name;
    }
};

export default { toASCII: host, toUnicode: (name: string): string => name };
