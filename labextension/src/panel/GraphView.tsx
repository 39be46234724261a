/** The graph of steps: laid out by the kernel, so that it is the same picture everywhere; states and counts are put in here. */
import type { Graph, GraphNode, Step } from "../types";
import { done, seconds, shares, word } from "./format";

interface Props {
    graph: Graph;
    steps: Step[];
    now: number;
    chosen: string | null;
    choose: (step: string) => void;
}

export function GraphView({ graph, steps, now, chosen, choose }: Props) {
    if (!graph.nodes.length) return null;
    const known = new Map(steps.map((step) => [step.step, step]));
    return (
        <div class="fbp-graph">
            <svg
                viewBox={`0 0 ${graph.width} ${graph.height}`} style={{ width: `${graph.width}px`, minWidth: `${Math.round(graph.width * 0.8)}px` }}
                role="group" aria-label={`graph of ${graph.nodes.length} steps`}
            >
                {graph.nodes.map((node) => <Node key={node.step} node={node} step={known.get(node.step)} now={now} chosen={chosen === node.step} choose={choose} />)}
                {graph.edges.map((edge) => <Edge key={`${edge.from} ${edge.to}`} path={edge.path} live={known.get(edge.to)?.state === "running"} title={`${edge.from} → ${edge.to}${edge.reads.length ? `: ${edge.reads.join(", ")}` : ""}`} />)}
            </svg>
        </div>
    );
}

function Edge({ path, live, title }: { path: string; live: boolean; title: string }) {
    return <g class={live ? "fbp-edge fbp-live" : "fbp-edge"}><title>{title}</title><path d={path} /></g>;
}

function Node({ node, step, now, chosen, choose }: { node: GraphNode; step: Step | undefined; now: number; chosen: boolean; choose: (step: string) => void }) {
    const state = step?.state ?? "waiting";
    const said = told(step, now);
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
            aria-label={`${node.step}, ${word(state)}${said ? `, ${said}` : ""}`} onClick={() => choose(node.step)} onKeyDown={press}
        >
            {fan && <rect class="fbp-box fbp-behind" x={node.x + 3} y={node.y + 3} width={node.w} height={node.h} rx="5" />}
            <rect class="fbp-box" x={node.x} y={node.y} width={node.w} height={node.h} rx="5" />
            <rect class="fbp-edgeband" x={node.x} y={node.y + 6} width="3" height={node.h - 12} rx="1.5" />
            <text class="fbp-name" x={middle} y={node.y + (said ? 16 : node.h / 2 + 4)}>{node.label}</text>
            {said && <text class="fbp-said" x={middle} y={node.y + (fan ? 28 : 30)}>{said}</text>}
            {fan && step && <Share step={step} node={node} />}
            <title>{[node.step, node.note, `${word(state)}${said ? `, ${said}` : ""}`, step?.note ?? ""].filter(Boolean).join("\n")}</title>
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

function told(step: Step | undefined, now: number): string {
    if (!step) return "";
    const took = step.seconds ?? (step.begun !== null && step.state === "running" ? now - step.begun : null);
    if (!step.fan) return step.note.startsWith("cached") ? "cached" : seconds(took);
    const failed = step.counts.failed ? ` · ${step.counts.failed} failed` : "";
    return step.total ? `${done(step)}/${step.total}${failed}` : "";
}
