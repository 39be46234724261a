/** Loads vega.js once for a page, from its bytes, so that nothing comes from a network: a kernel sends them, whatever server the page is from. */
import type { Vega } from "./vega-types";

const KEY = Symbol.for("flowbook.vega");

type Loaded = Map<string, Promise<Vega>>;

/** Vega of the bundle of that version; `source` is asked for only if no widget of the page has it yet. A failure is tried again. */
export function loadVega(version: string, source: () => Promise<BlobPart>): Promise<Vega> {
    const place = globalThis as unknown as { [KEY]?: Loaded };
    const loaded: Loaded = (place[KEY] ??= new Map());
    let found = loaded.get(version);
    if (!found) {
        found = imported(source);
        loaded.set(version, found);
        found.catch(() => loaded.delete(version));
    }
    return found;
}

async function imported(source: () => Promise<BlobPart>): Promise<Vega> {
    // The address is kept: the worker in which charts are tried out starts from it again.
    const address = URL.createObjectURL(new Blob([await source()], { type: "text/javascript" }));
    return ((await import(address)) as { default: Vega }).default;
}
