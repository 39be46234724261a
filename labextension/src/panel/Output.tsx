/** What a task printed: its end, with colours and search. Stays at the end while one looks at the end. */
import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { sanitised } from "../card/markdown";
import { collapsed, spans, type Span } from "../text";
import type { Piece } from "../types";
import { bytes } from "./format";
import { matches } from "./pick";

export function Output({ output, size, task, ended }: { output: Piece[]; size: number; task: string; ended: boolean }) {
    const [query, ask] = useState("");
    const [at, go] = useState(0);
    const box = useRef<HTMLDivElement>(null);
    const atEnd = useRef(true);
    const shown = output.map((piece) => (piece.mime === "stream" || piece.mime === "text/plain" ? spans(collapsed(piece.data)) : piece));
    const found = shown.map((piece) => (Array.isArray(piece) && query ? piece.reduce((sum, span) => sum + (matches(span.text, query).length - 1) / 2, 0) : 0));
    const count = found.reduce((a, b) => a + b, 0);
    const printed = output.reduce((sum, piece) => sum + (piece.mime === "stream" ? new TextEncoder().encode(piece.data).length : 0), 0);
    useLayoutEffect(() => {
        const el = box.current;
        if (!el) return;
        if (query) el.querySelector(".fbp-here")?.scrollIntoView({ block: "nearest" });
        else if (atEnd.current) el.scrollTop = el.scrollHeight;
    });
    if (!output.length) return <p class="fbp-dim">{ended ? "it printed nothing" : "nothing printed yet"}</p>;
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
                {size > printed && <span class="fbp-dim">the last {bytes(printed)} of {bytes(size)}; all: <code>%flow logs {task}</code></span>}
            </div>
            <div class="fbp-printed" ref={box} tabIndex={0} role="log" aria-live="off" aria-label={`output of ${task}`}
                onScroll={(event) => { const el = event.currentTarget; atEnd.current = el.scrollHeight - el.scrollTop - el.clientHeight < 24; }}>
                {shown.map((piece, i) => Array.isArray(piece)
                    ? <pre key={i}><Spans pieces={piece} query={query} at={at - found.slice(0, i).reduce((a, b) => a + b, 0)} /></pre>
                    : <Display key={i} piece={piece} />)}
            </div>
        </div>
    );
}

/** A figure or a table. An SVG is shown as an image: so it runs no script and loads nothing. */
function Display({ piece }: { piece: Piece }) {
    const place = useRef<HTMLDivElement>(null);
    useLayoutEffect(() => {
        if (piece.mime === "text/html") place.current?.replaceChildren(sanitised(piece.data));
    }, [piece.mime, piece.data]);
    if (piece.mime === "text/html") return <div class="fbp-shown jp-RenderedHTMLCommon" ref={place} />;
    const svg = piece.mime === "image/svg+xml";
    const src = svg ? `data:image/svg+xml,${encodeURIComponent(piece.data)}` : `data:${piece.mime};base64,${piece.data.replace(/[^A-Za-z0-9+/=]/g, "")}`;
    return <img class="fbp-shown" alt="figure" src={src} />;
}

function Spans({ pieces, query, at }: { pieces: Span[]; query: string; at: number }) {
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
