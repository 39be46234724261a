/** Addresses of links: what may not stand in one is percent-encoded, and read back for display. */
export const parse = (href) => ({ href });
export const format = ({ href }) => encode(href);

export function encode(text) {
    try {
        return encodeURI(text).replace(/%25([0-9a-f]{2})/gi, "%$1").replace(/%5B/gi, "[").replace(/%5D/gi, "]");
    } catch {
        return ""; // half a surrogate
    }
}

export function decode(text) {
    try {
        return decodeURI(text);
    } catch {
        return text;
    }
}
decode.defaultChars = "";
