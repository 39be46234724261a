/** What a task printed: its end, with colours and search. Stays at the end while one looks at the end. */
import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { collapsed, spans, type Span } from "../text";
import { bytes } from "./format";
import { matches } from "./pick";

export function Output({ text, size, task }: { text: string; size: number; task: string }) {
    const [query, ask] = useState("");
    const [at, go] = useState(0);
    const box = useRef<HTMLPreElement>(null);
    const atEnd = useRef(true);
    const shown = spans(collapsed(text));
    const count = query ? shown.reduce((sum, piece) => sum + (matches(piece.text, query).length - 1) / 2, 0) : 0;
    const cut = size - new TextEncoder().encode(text).length;
    useLayoutEffect(() => {
        const el = box.current;
        if (!el) return;
        if (query) el.querySelector(".fbp-here")?.scrollIntoView({ block: "nearest" });
        else if (atEnd.current) el.scrollTop = el.scrollHeight;
    });
    if (!text) return <p class="fbp-dim">nothing printed yet</p>;
    const next = (event: KeyboardEvent): void => {
        event.stopPropagation();
        if (event.key === "Enter" && count) go((at + (event.shiftKey ? count - 1 : 1)) % count);
        if (event.key === "Escape") ask("");
    };
    return (
        <div class="fbp-output">
            <div class="fbp-search">
                <input type="search" placeholder="search" aria-label={`search the output of ${task}`} value={query} onKeyDown={next} onInput={(event) => { ask(event.currentTarget.value); go(0); }} />
                <span class="fbp-dim" role="status">{query ? (count ? `${Math.min(at, count - 1) + 1} of ${count}` : "not found") : ""}</span>
                {cut > 0 && <span class="fbp-dim">the last {bytes(text.length)} of {bytes(size)}; all: <code>%flow logs {task}</code></span>}
            </div>
            <pre ref={box} tabIndex={0} aria-label={`output of ${task}`} onScroll={(event) => { const el = event.currentTarget; atEnd.current = el.scrollHeight - el.scrollTop - el.clientHeight < 24; }}>
                <Pieces pieces={shown} query={query} at={at} />
            </pre>
        </div>
    );
}

function Pieces({ pieces, query, at }: { pieces: Span[]; query: string; at: number }) {
    let number = 0;
    return (
        <>
            {pieces.map(({ text, style, colour, background }) => {
                const inner = query
                    ? matches(text, query).map((part, i) => (i % 2 ? <mark class={number++ === at ? "fbp-here" : ""}>{part}</mark> : part))
                    : text;
                if (!style.length && !colour && !background) return inner;
                return <span class={style.map((name) => `ansi-${name}`).join(" ")} style={{ color: colour, background }}>{inner}</span>;
            })}
        </>
    );
}
