/** When each task waited, started, ran and saved. Steps with many tasks are folded until they are opened. A tree for the keyboard and for screen readers. */
import { useRef, useState } from "preact/hooks";
import type { Step, Task } from "../types";
import { PHASES, doing, done, plain, seconds, word } from "./format";
import { Icon } from "./Icon";
import { pieces, ticks } from "./pick";

interface Props {
    steps: Step[];
    tasks: Task[];
    /** Fan-outs without items. */
    empty: Set<string>;
    now: number;
    started: number | null;
    chosen: string | null;
    choose: (task: string) => void;
}

interface Row {
    key: string;
    step: Step;
    task: Task | null; // null: the head of a fan-out, or a step of which nothing is known yet
    folded: boolean | null; // null: nothing to fold
}

interface Span {
    from: number;
    length: number;
    now: number;
}

const OPEN_UP_TO = 12; // tasks

export function Timeline({ steps, tasks, empty, now, started, chosen, choose }: Props) {
    const [folded, fold] = useState<{ [step: string]: boolean }>({});
    const [head, setHead] = useState<string | null>(null); // of the fan-out that the keyboard stands on
    const list = useRef<HTMLDivElement>(null);
    const rows = rowsOf(steps, tasks, folded, chosen);
    const from = started ?? now;
    const to = Math.max(now, ...tasks.map((task) => task.ended ?? 0), from + 0.1);
    const span: Span = { from, length: to - from, now };
    const marks = ticks(0, span.length, 4).map((tick) => ({ tick, left: `${(100 * tick) / span.length}%` }));
    const at = rows.findIndex((row) => (row.task ? head === null && row.task.id === chosen : row.step.step === head));
    const go = (row: Row | undefined): void => {
        if (!row) return;
        setHead(row.task ? null : row.step.step);
        if (row.task) choose(row.task.id);
        requestAnimationFrame(() => list.current?.querySelector("[data-here]")?.scrollIntoView({ block: "nearest" }));
    };
    const keyed = (event: KeyboardEvent): void => {
        const row = rows[at];
        const step = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: rows.length - 1 }[event.key];
        const isHead = row && row.folded !== null;
        if (step !== undefined) go(rows[Math.min(Math.max(step, 0), rows.length - 1)]);
        else if (event.key === "ArrowLeft" && row?.task && row.step.fan) go(rows.find((one) => !one.task && one.step === row.step));
        else if (isHead && ((event.key === "ArrowRight" && row.folded) || (event.key === "ArrowLeft" && !row.folded) || event.key === "Enter" || event.key === " ")) {
            fold({ ...folded, [row.step.step]: !row.folded });
        } else if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
        event.preventDefault();
        event.stopPropagation();
    };
    return (
        <div class="fbp-timeline">
            <div class="fbp-axis" aria-hidden="true">
                <span />
                <div>{marks.map(({ tick, left }) => <i style={{ left }}>{tick ? axisText(tick) : "0"}</i>)}</div>
                <span />
            </div>
            <div class="fbp-lines" role="tree" aria-label="tasks" tabIndex={0} ref={list} onKeyDown={keyed}
                aria-activedescendant={at >= 0 ? rowId(rows[at]!) : undefined}>
                <div class="fbp-ruled" role="none">
                    <div class="fbp-rules" aria-hidden="true"><span /><div>{marks.map(({ left }) => <i style={{ left }} />)}</div><span /></div>
                    {rows.map((row, i) => row.task
                        ? <Line key={row.key} row={row} task={row.task} span={span} chosen={row.task.id === chosen} here={i === at} choose={() => go(row)} />
                        : <Head key={row.key} row={row} empty={empty.has(row.step.step)} span={span} here={i === at}
                            fold={() => row.folded !== null && fold({ ...folded, [row.step.step]: !row.folded })} />)}
                </div>
            </div>
            <Legend pods={tasks.some((task) => task.pod)} />
        </div>
    );
}

function rowsOf(steps: Step[], tasks: Task[], folded: { [step: string]: boolean }, chosen: string | null): Row[] {
    const of = new Map<string, Task[]>();
    for (const task of tasks) of.get(task.step)?.push(task) ?? of.set(task.step, [task]);
    return steps.flatMap((step) => {
        const own = of.get(step.step) ?? [];
        if (!step.fan) return [{ key: step.step, step, task: own.at(-1) ?? null, folded: null }, ...own.slice(0, -1).map((task) => ({ key: task.id, step, task, folded: null }))];
        const isFolded = folded[step.step] ?? own.length > OPEN_UP_TO;
        const shown = isFolded ? own.filter((task) => task.state === "failed" || task.id === chosen) : own;
        return [{ key: `${step.step} *`, step, task: null, folded: own.length ? isFolded : null }, ...shown.map((task) => ({ key: task.id, step, task, folded: null }))];
    });
}

const rowId = (row: Row): string => `fbp-task-${(row.task?.id ?? row.key).replace(/[^\w]/g, "-")}`;

function axisText(tick: number): string {
    return tick < 10 ? `${Number(tick.toFixed(2))} s` : seconds(tick);
}

const place = ({ from, length }: Span, begin: number, end: number): { left: string; width: string } => ({
    left: `${(100 * (begin - from)) / length}%`, width: `${(100 * (end - begin)) / length}%`,
});

function Line({ row, task, span, chosen, here, choose }: { row: Row; task: Task; span: Span; chosen: boolean; here: boolean; choose: () => void }) {
    const took = task.launched !== null ? (task.ended ?? span.now) - task.launched : null;
    const name = row.step.fan ? `[${task.index.join(",")}]` : task.id;
    const is = row.step.state === "not run" && (task.state === "waiting" || task.state === "ready") ? "not run" : doing(task);
    const said = task.cached ? "cached" : task.state === "backoff" ? "retry" : task.phase && task.state === "launched" ? is : took !== null ? seconds(took) : is;
    const item = task.item === null ? null : plain(task.item);
    const why = task.why ? `\n${plain(task.why)}` : "";
    return (
        <div id={rowId(row)} class={`fbp-row${row.step.fan ? " fbp-of-fan" : ""}`} role="treeitem" aria-level={row.step.fan ? 2 : 1} aria-selected={chosen} data-here={here || undefined}
            data-task={task.id} onClick={choose}
            title={`${task.id}${item ? ` · ${item}` : ""}\n${is}${task.attempt ? `, attempt ${task.attempt + 1}` : ""}${why}`}
            aria-label={`${task.id}${item ? `, item ${item}` : ""}, ${is}${said && said !== is ? `, ${said}` : ""}`}>
            <span class="fbp-what"><Icon state={task.state} label={false} /><b>{name}</b>{item !== null && <span class="fbp-item">{item}</span>}</span>
            <span class="fbp-track">
                {task.cached ? null : pieces(task, span.now).map((piece) => (
                    <i class={`fbp-${piece.phase}${piece.phase === "running" ? ` fbp-fill-${task.state}` : ""}`} style={place(span, piece.from, piece.to)} />
                ))}
            </span>
            <span class="fbp-took">{said}</span>
        </div>
    );
}

function Head({ row: { step, folded, key }, row, empty, span, here, fold }: { row: Row; empty: boolean; span: Span; here: boolean; fold: () => void }) {
    const end = step.begun === null ? null : step.seconds === null ? span.now : step.begun + step.seconds;
    const took = end !== null && step.begun !== null ? seconds(end - step.begun) : empty ? "no items" : step.total ? "" : word(step.state);
    const count = step.total ? `${done(step)}/${step.total}` : "";
    const failed = step.counts.failed ?? 0;
    return (
        <div id={rowId(row)} key={key} class="fbp-row fbp-headrow" role="treeitem" aria-level={1} aria-expanded={folded === null ? undefined : !folded} data-here={here || undefined}
            aria-label={`${step.step}, ${[step.fan ? `${step.total} tasks` : "", step.total ? `${done(step)} done` : "", failed ? `${failed} failed` : "", took].filter(Boolean).join(", ")}`}
            onClick={fold}>
            <span class="fbp-what">
                {folded === null ? <Icon state={step.state} label={false} /> : <svg class="fbp-fold" viewBox="0 0 10 10" width="14" height="10" aria-hidden="true"><path d="M3 1.5L7 5 3 8.5" /></svg>}
                <b>{step.step}</b>{count && <span class="fbp-item">{count}</span>}
            </span>
            <span class="fbp-track">
                {step.begun !== null && end !== null && <i class="fbp-all" style={place(span, step.begun, end)} />}
            </span>
            <span class="fbp-took">{took}</span>
        </div>
    );
}

function Legend({ pods }: { pods: boolean }) {
    return (
        <div class="fbp-legend" aria-hidden="true">
            {PHASES.filter((phase) => pods || !["scheduled", "pulling", "importing"].includes(phase)).map((phase) => <span><i class={`fbp-${phase} fbp-fill-${phase === "running" ? "succeeded" : ""}`} />{phase}</span>)}
        </div>
    );
}
