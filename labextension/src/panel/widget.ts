/** The run panel as an anywidget: only wires the model to the view. */
import { h, render } from "preact";
import { hideStatic, isDark, onTheme, State, type Model } from "./model";
import { Panel } from "./Panel";

export default {
    render({ model, el }: { model: Model; el: HTMLElement }): () => void {
        const state = new State(model);
        let [token, shown] = ["", (): void => {}];
        const draw = (): void => {
            if (state.head.token !== token) {
                shown();
                token = state.head.token;
                shown = hideStatic(token);
            }
            el.toggleAttribute("data-flowbook-dark", isDark());
            el.toggleAttribute("data-flowbook-gone", state.gone);
            render(h(Panel, { state, dark: isDark(), turn: {} }), el);
        };
        const ends = [state.listen(draw), onTheme(draw)];
        const clock = setInterval(() => (state.head.state === "running" || state.waits()) && draw(), 1000);
        draw();
        return () => {
            clearInterval(clock);
            ends.forEach((end) => end());
            shown();
            render(null, el);
        };
    },
};
