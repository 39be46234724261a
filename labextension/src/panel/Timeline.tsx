/** When each task waited, started, ran and saved. Steps with many tasks are folded until they are opened. */
import { useRef, useState } from "preact/hooks";
import type { Step, Task } from "../types";
import { done, seconds, word } from "./format";
import { Icon } from "./Icon";
import { pieces, ticks } from "./pick";

interface Props {
    steps: Step[];
    tasks: Task[];
    now: number;
    started: number | null;
    chosen: string | null;
    choose: (task: string) => void;
}

interface Row {
    key: string;
    step: Step;
    task: Task | null; // null: the head of a step with many
}

const OPEN_UP_TO = 12; // tasks

export function Timeline({ steps, tasks, now, started, chosen, choose }: Props) {
    const [folded, fold] = useState<{ [step: string]: boolean }>({});
    const list = useRef<HTMLDivElement>(null);
    const rows: Row[] = steps.flatMap((step) => {
        const own = tasks.filter((task) => task.step === step.step);
        if (!step.fan) return [{ key: step.step, step, task: own.at(-1) ?? null }, ...own.slice(0, -1).map((task) => ({ key: task.id, step, task }))];
        const isFolded = folded[step.step] ?? own.length > OPEN_UP_TO;
        const shown = isFolded ? own.filter((task) => task.state === "failed" || task.id === chosen) : own;
        return [{ key: `${step.step} *`, step, task: null }, ...shown.map((task) => ({ key: task.id, step, task }))];
    });
    const from = started ?? now;
    const to = Math.max(now, ...tasks.map((task) => task.ended ?? 0), from + 0.1);
    const span = to - from;
    const choosable = rows.filter((row) => row.task);
    const move = (event: KeyboardEvent): void => {
        const at = choosable.findIndex((row) => row.task?.id === chosen);
        const by = { ArrowDown: 1, ArrowUp: -1, Home: -at, End: choosable.length - 1 - at }[event.key];
        if (by === undefined) return;
        event.preventDefault();
        event.stopPropagation();
        const next = choosable[Math.min(Math.max(at + by, 0), choosable.length - 1)];
        if (next?.task) choose(next.task.id);
        requestAnimationFrame(() => list.current?.querySelector("[aria-selected=true]")?.scrollIntoView({ block: "nearest" }));
    };
    return (
        <div class="fbp-timeline">
            <div class="fbp-axis" aria-hidden="true">
                <span />
                <div>{ticks(0, span, 4).map((tick) => <i style={{ left: `${(100 * tick) / span}%` }}>{tick ? axisText(tick) : "0"}</i>)}</div>
                <span />
            </div>
            <div class="fbp-lines" role="listbox" aria-label="tasks" tabIndex={0} ref={list} onKeyDown={move}
                aria-activedescendant={choosable.some((row) => row.task?.id === chosen) ? rowId(chosen ?? "") : undefined}>
                {rows.map((row) => row.task
                    ? <Line key={row.key} row={row} task={row.task} now={now} from={from} span={span} chosen={row.task.id === chosen} choose={choose} />
                    : <Head key={row.key} step={row.step} now={now} from={from} span={span}
                        folded={row.step.fan ? folded[row.step.step] ?? row.step.total > OPEN_UP_TO : null}
                        fold={(is) => fold({ ...folded, [row.step.step]: is })} />)}
            </div>
            <Legend />
        </div>
    );
}

const rowId = (task: string): string => `fbp-task-${task.replace(/[^\w]/g, "-")}`;

function axisText(tick: number): string {
    return tick < 10 ? `${Number(tick.toFixed(2))} s` : seconds(tick);
}

function Line({ row, task, now, from, span, chosen, choose }: { row: Row; task: Task; now: number; from: number; span: number; chosen: boolean; choose: (task: string) => void }) {
    const took = task.launched !== null ? (task.ended ?? now) - task.launched : null;
    const name = row.step.fan ? `[${task.index.join(",")}]` : task.id;
    const said = task.cached ? "cached" : task.state === "backoff" ? "retry" : took !== null ? seconds(took) : "";
    const why = task.why ? `\n${task.why}` : "";
    return (
        <div id={rowId(task.id)} class={`fbp-row${row.step.fan ? " fbp-of-fan" : ""}`} role="option" aria-selected={chosen} onClick={() => choose(task.id)}
            title={`${task.id}${task.item ? ` · ${task.item}` : ""}\n${word(task.state)}${task.attempt ? `, attempt ${task.attempt + 1}` : ""}${why}`}
            aria-label={`${task.id}${task.item ? `, item ${task.item}` : ""}, ${word(task.state)}${said ? `, ${said}` : ""}`}>
            <span class="fbp-what"><Icon state={task.state} label={false} /><b>{name}</b>{task.item !== null && <span class="fbp-item">{task.item}</span>}</span>
            <span class="fbp-track">
                {task.cached ? null : pieces(task, now).map((piece) => (
                    <i class={`fbp-${piece.phase}${piece.phase === "running" ? ` fbp-fill-${task.state}` : ""}`}
                        style={{ left: `${(100 * (piece.from - from)) / span}%`, width: `${(100 * (piece.to - piece.from)) / span}%` }} />
                ))}
            </span>
            <span class="fbp-took">{said}</span>
        </div>
    );
}

function Head({ step, now, from, span, folded, fold }: { step: Step; now: number; from: number; span: number; folded: boolean | null; fold: (is: boolean) => void }) {
    const end = step.begun === null ? null : step.seconds === null ? now : step.begun + step.seconds;
    const count = step.fan && step.total ? `${done(step)}/${step.total}` : "";
    return (
        <div class="fbp-row fbp-headrow" role="presentation">
            <span class="fbp-what">
                {folded === null ? <Icon state={step.state} /> : (
                    <button type="button" class="fbp-fold" aria-expanded={!folded} aria-label={`tasks of ${step.step}`} onClick={() => fold(!folded)}>
                        <svg viewBox="0 0 10 10" width="10" height="10" aria-hidden="true"><path d="M3 1.5L7 5 3 8.5" /></svg>
                    </button>
                )}
                <b>{step.step}</b><span class="fbp-item">{count || (step.begun === null ? word(step.state) : "")}</span>
            </span>
            <span class="fbp-track">
                {step.begun !== null && end !== null && <i class="fbp-all" style={{ left: `${(100 * (step.begun - from)) / span}%`, width: `${(100 * (end - step.begun)) / span}%` }} />}
            </span>
            <span class="fbp-took">{end !== null && step.begun !== null ? seconds(end - step.begun) : ""}</span>
        </div>
    );
}

function Legend() {
    return (
        <div class="fbp-legend" aria-hidden="true">
            {(["queued", "starting", "running", "saving"] as const).map((phase) => <span><i class={`fbp-${phase} fbp-fill-${phase === "running" ? "succeeded" : ""}`} />{phase}</span>)}
        </div>
    );
}
