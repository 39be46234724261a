/** The run panel as an anywidget: only wires the model to the view. */
import type { CardJson } from "../types";
import { renderCard } from "../card/index";

export default {
    render({ el }: { el: HTMLElement }): () => void {
        const card: CardJson = { v: 1, id: "main", type: "blank", state: "running", n: 0, components: [] };
        return renderCard(el, card, { vega: () => Promise.reject(new Error("not there")), theme: "light" });
    },
};
