/** What vega.js, the second bundle, offers to the first: no type of Vega itself, so that the panel is built without it. */
import type { Json } from "../types";

export interface Drawing {
    /** Draws with other data, if only the data is another; false: it has to be drawn anew. */
    change(spec: { [name: string]: Json }): Promise<boolean>;
    end(): void;
}

export interface Vega {
    /** Draws a specification of Vega-Lite or Vega into an element. Rejects with what is wrong with it, in words. */
    draw(el: HTMLElement, spec: { [name: string]: Json }, look: Look): Promise<Drawing>;
}

export interface Look {
    /** Pixels that there are. */
    width: number;
    text: string;
    faint: string;
    line: string;
    font: string;
}
