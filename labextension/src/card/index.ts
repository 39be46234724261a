/** A card in an element, updated in place. This is a stand-in that shows the text of each component. */
import type { CardJson } from "../types";

/** What a card needs of where it is shown. */
export interface Host {
    /** Vega, loaded once for all cards of the page; rejects where it cannot be had. */
    vega(): Promise<unknown>;
    theme: "light" | "dark";
}

/** Draws the card into `el`; called again with a newer card it changes what is there. Gives what takes it away. */
export function renderCard(el: HTMLElement, card: CardJson, _host: Host): () => void {
    el.replaceChildren(
        ...card.components.map((part) => {
            const shown = document.createElement("pre");
            shown.textContent = typeof part.text === "string" ? part.text : JSON.stringify(part);
            return shown;
        }),
    );
    return () => el.replaceChildren();
}
