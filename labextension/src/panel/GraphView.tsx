/** The graph of steps: laid out by the kernel, so that it is the same picture everywhere; states and counts are put in here. */
import { useLayoutEffect, useRef, useState } from "preact/hooks";
import type { Graph, GraphNode, Step } from "../types";
import { done, plain, seconds, shares, word } from "./format";
import { useWidth } from "./width";

interface Props {
    graph: Graph;
    steps: Step[];
    /** Fan-outs without items. */
    empty: Set<string>;
    now: number;
    chosen: string | null;
    choose: (step: string) => void;
}

const LEAST_SCALE = 0.8; // smaller letters cannot be read; then one scrolls
const HEIGHT = 270; // pixels, until all of it is asked for

export function GraphView({ graph, steps, empty, now, chosen, choose }: Props) {
    const box = useRef<HTMLDivElement>(null);
    const room = useWidth(box, 600);
    const [whole, show] = useState(false);
    const scale = Math.min(Math.max(room / graph.width, whole ? 0.3 : LEAST_SCALE), 1);
    const node = graph.nodes.find((one) => one.step === chosen);
    useLayoutEffect(() => { // the step that one looks at is in sight
        const el = box.current;
        if (!el || !node) return;
        const into = (at: number, size: number, length: number): number => Math.max(at * scale - (length - size * scale) / 2, 0);
        el.scrollLeft = into(node.x, node.w, el.clientWidth);
        el.scrollTop = into(node.y, node.h, el.clientHeight);
    }, [chosen, scale, whole, graph]);
    if (!graph.nodes.length) return null;
    const known = new Map(steps.map((step) => [step.step, step]));
    const over = graph.width * LEAST_SCALE > room + 1 || graph.height * scale > HEIGHT;
    return (
        <div class="fbp-graph">
            <div class="fbp-graphbox" ref={box} style={{ maxHeight: whole ? undefined : `${HEIGHT}px` }}>
                <svg
                    viewBox={`0 0 ${graph.width} ${graph.height}`} width={Math.round(graph.width * scale)} height={Math.round(graph.height * scale)}
                    role="group" aria-label={`graph of ${graph.nodes.length} steps`}
                >
                    {graph.nodes.map((node) => (
                        <Node key={node.step} node={node} step={known.get(node.step)} empty={empty.has(node.step)} now={now} chosen={chosen === node.step} choose={choose} />
                    ))}
                    {graph.edges.map((edge) => <Edge key={`${edge.from} ${edge.to}`} path={edge.path} live={known.get(edge.to)?.state === "running"} title={`${edge.from} → ${edge.to}${edge.reads.length ? `: ${edge.reads.join(", ")}` : ""}`} />)}
                </svg>
            </div>
            {(over || whole) && <button type="button" class="fbp-button fbp-whole" aria-pressed={whole} onClick={() => show(!whole)}>Whole graph</button>}
        </div>
    );
}

function Edge({ path, live, title }: { path: string; live: boolean; title: string }) {
    return <g class={live ? "fbp-edge fbp-live" : "fbp-edge"}><title>{title}</title><path d={path} /></g>;
}

interface NodeProps {
    node: GraphNode;
    step: Step | undefined;
    empty: boolean;
    now: number;
    chosen: boolean;
    choose: (step: string) => void;
}

function Node({ node, step, empty, now, chosen, choose }: NodeProps) {
    const waits = step?.state === "waiting" && step.counts.backoff;
    const state = empty ? "skipped" : waits ? "backoff" : (step?.state ?? "waiting");
    const said = empty ? "no items" : told(step, state, now);
    const words = said && said === step?.phase ? said : said && said !== word(state) && !empty ? `${word(state)}, ${said}` : empty ? said : word(state);
    const press = (event: KeyboardEvent): void => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        event.stopPropagation();
        choose(node.step);
    };
    const fan = step?.fan ?? false;
    const middle = node.x + node.w / 2;
    return (
        <g
            class={`fbp-node fbp-is-${state.replace(" ", "-")}`} role="button" tabIndex={0} aria-pressed={chosen}
            aria-label={`${node.step}, ${words}`} onClick={() => choose(node.step)} onKeyDown={press}
        >
            {fan && <rect class="fbp-box fbp-behind" x={node.x + 3} y={node.y + 3} width={node.w} height={node.h} rx="5" />}
            <rect class="fbp-box" x={node.x} y={node.y} width={node.w} height={node.h} rx="5" />
            <rect class="fbp-edgeband" x={node.x} y={node.y + 6} width="3" height={node.h - 12} rx="1.5" />
            <text class="fbp-name" x={middle} y={node.y + (said ? 16 : node.h / 2 + 4)}>{node.label}</text>
            {said && <text class="fbp-said" x={middle} y={node.y + (fan ? 28 : 30)}>{said}</text>}
            {fan && step && <Share step={step} node={node} />}
            <title>{[node.step, node.note, words, step?.note ?? ""].filter(Boolean).map(plain).join("\n")}</title>
        </g>
    );
}

function Share({ step, node }: { step: Step; node: GraphNode }) {
    const x = node.x + 9, width = node.w - 18, total = Math.max(step.total, 1);
    let at = 0;
    return (
        <>
            <rect class="fbp-empty" x={x} y={node.y + node.h - 6} width={width} height="3" />
            {shares(step).map(({ state, count }) => {
                const from = at;
                at += count;
                return <rect class={`fbp-fill-${state}`} x={x + (width * from) / total} y={node.y + node.h - 6} width={(width * count) / total} height="3" />;
            })}
        </>
    );
}

function told(step: Step | undefined, state: string, now: number): string {
    if (!step) return "";
    const took = step.seconds ?? (step.begun !== null && step.state === "running" ? now - step.begun : null);
    if (!step.fan) return state === "backoff" ? "retry" : step.phase ? step.phase : step.note.startsWith("cached") ? "cached" : seconds(took) || (state === "skipped" || state === "stopped" ? state : "");
    const failed = step.counts.failed ? ` · ${step.counts.failed} failed` : "";
    return step.total ? `${done(step)}/${step.total}${failed}` : "";
}
