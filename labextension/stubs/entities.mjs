/** `&copy;` → `©`, by the browser's own table: an inert document reads the one entity, nothing else gets there. */
const ENTITY = /^&(?:#x[0-9a-f]{1,6}|#[0-9]{1,7}|[a-z][a-z0-9]{1,31});$/i;

export function decodeHTMLStrict(text) {
    if (!ENTITY.test(text) || typeof DOMParser === "undefined") return text;
    return new DOMParser().parseFromString(text, "text/html").body.textContent || text;
}
