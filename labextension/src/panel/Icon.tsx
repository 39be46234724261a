/** A state as a small drawing: told apart by its form, coloured besides. */
import { kind, word } from "./format";

const STROKES: { [state: string]: string } = {
    succeeded: "M4.2 8.3l2.6 2.6 5-5.4",
    failed: "M5.2 5.2l5.6 5.6M10.8 5.2l-5.6 5.6",
    skipped: "M4.5 8h7",
    backoff: "M8 4.6V8l2.3 1.6",
};

/** `label` false: the state stands beside it in words. */
export function Icon({ state, label = true }: { state: string; label?: boolean }) {
    return (
        <svg class={`fbp-icon fbp-is-${kind(state)}`} viewBox="0 0 16 16" width="14" height="14" role={label ? "img" : undefined} aria-hidden={!label} aria-label={label ? word(state) : undefined}>
            <Form state={kind(state)} />
        </svg>
    );
}

function Form({ state }: { state: string }) {
    const stroke = STROKES[state];
    if (state === "succeeded" || state === "failed") return <><circle class="fbp-disc" cx="8" cy="8" r="7" /><path class="fbp-cut" d={stroke} /></>;
    if (state === "running" || state === "launched")
        return <><circle class="fbp-ring" cx="8" cy="8" r="6" /><circle class={`fbp-arc${state === "running" ? "" : " fbp-thin"}`} cx="8" cy="8" r="6" pathLength={100} /></>;
    if (state === "stopped") return <><circle class="fbp-ring" cx="8" cy="8" r="6" /><rect class="fbp-dot" x="5.5" y="5.5" width="5" height="5" /></>;
    if (state === "lost") return <><circle class="fbp-ring" cx="8" cy="8" r="6" /><path class="fbp-line" d="M8 4.6v4M8 10.6v.8" /></>;
    if (stroke) return <><circle class="fbp-ring" cx="8" cy="8" r="6" /><path class="fbp-line" d={stroke} /></>;
    return <circle class="fbp-ring fbp-dashed" cx="8" cy="8" r="6" />;
}

/** So many of so many, as a bar; the words beside it say the same. */
export function Bar({ shares, total }: { shares: { state: string; count: number }[]; total: number }) {
    return (
        <span class="fbp-bar" aria-hidden="true">
            {shares.map(({ state, count }) => <i class={`fbp-fill-${state}`} style={{ width: `${(100 * count) / Math.max(total, 1)}%` }} />)}
        </span>
    );
}
