/** The panel of one run. What a view has chosen is kept here; what the run is, comes with every turn from the model. */
import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import type { Head, Step } from "../types";
import { CardView, DetailView } from "./DetailView";
import { done, plain, seconds, shares, word } from "./format";
import { GraphView } from "./GraphView";
import { Bar, Icon } from "./Icon";
import type { State } from "./model";
import { empties, first, followed, settled, type Order } from "./pick";
import { Sweep } from "./Sweep";
import { Tabs, type Tab } from "./Tabs";
import { Timeline } from "./Timeline";
import { useHeldHeight } from "./width";

/** `turn` is new whenever the model has changed or time has passed. */
export function Panel({ state, dark }: { state: State; dark: boolean; turn: object }) {
    const { head, steps, tables } = state;
    const tasks = settled(state.tasks, head.state);
    const now = state.now();
    const [picked, pick] = useState<string | null>(null);
    const [step, chooseStep] = useState<string | null>(null);
    const [tab, chooseTab] = useState("timeline");
    const [detailTab, chooseDetailTab] = useState<string | null>(null);
    const [orders, setOrders] = useState<{ [step: string]: Order | null }>({});
    useEffect(() => { pick(null); chooseStep(null); }, [head.run]);

    const hasCard = (id: string): boolean => (state.detail(id)?.cards.length ?? 0) > 0;
    const held = useRef<{ id: string; at: number } | null>(null);
    const at = Date.now() / 1000;
    const shown = tasks.some((task) => task.id === picked) ? picked : followed(tasks, hasCard, held.current, at, head.state !== "running");
    if (shown !== held.current?.id) held.current = shown === null ? null : { id: shown, at };
    const columns = useRef<HTMLDivElement>(null);
    useHeldHeight(columns, head.state === "running", `${tab} ${picked}`);
    const empty = empties(steps, state.graph.edges);
    const task = tasks.find((one) => one.id === shown);
    const wanted = task && picked === task.id && !state.detail(task.id) && (task.launched !== null || task.ended !== null) ? task : null;
    useEffect(() => { if (wanted) state.send({ do: "show", step: wanted.step, index: wanted.index }); }, [wanted?.id]);
    const choose = (id: string): void => {
        pick(id);
        const found = tasks.find((one) => one.id === id);
        if (found) state.send({ do: "show", step: found.step, index: found.index });
        if (found && step !== found.step) chooseStep(found.step);
    };
    const openStep = (name: string): void => {
        chooseStep(name);
        chooseTab(tables[name] ? `table ${name}` : "timeline");
        const own = tasks.filter((one) => one.step === name);
        const next = own.length ? first(own, hasCard) : null;
        if (next && !own.some((one) => one.id === shown)) choose(next);
    };
    const views: Tab[] = [
        { id: "timeline", label: "Timeline", content: () => <Timeline steps={steps} tasks={tasks} empty={empty} now={now} started={head.started} chosen={shown} choose={choose} /> },
        ...Object.entries(tables).map(([name, table]) => ({
            id: `table ${name}`,
            label: <><span class="fbp-short" title={name}>{name}</span> <span class="fbp-count">{table.total}</span></>,
            content: () => <Sweep step={name} table={table} empty={empty.has(name)} now={now} chosen={shown} choose={choose} order={orders[name] ?? null} setOrder={(order) => setOrders({ ...orders, [name]: order })} />,
        })),
    ];
    const fan = steps.find((one) => `table ${one.step}` === tab);
    const stopStep = fan && head.state === "running" && fan.state === "running"
        && <button type="button" class="fbp-button" onClick={() => state.send({ do: "stop", step: fan.step })}>Stop {fan.step}</button>;
    return (
        <div class="fbp" data-run={head.run}>
            <Heading state={state} now={now} />
            <Notes head={head} />
            {state.card("card run") && <section class="fbp-run-card" aria-label="card of the run"><CardView card={state.card("card run")!} state={state} dark={dark} named={false} /></section>}
            <GraphView graph={state.graph} steps={steps} empty={empty} now={now} chosen={step ?? task?.step ?? null} choose={openStep} />
            <div class="fbp-columns" ref={columns}>
                <Tabs tabs={views} chosen={tab} choose={chooseTab} label="tasks" aside={stopStep} />
                {task && (
                    <DetailView state={state} task={task} now={now} dark={dark} tab={detailTab} setTab={(tab) => { chooseDetailTab(tab); choose(task.id); }}
                        stop={() => state.send({ do: "stop", step: task.step, index: task.index })} />
                )}
            </div>
        </div>
    );
}

function Heading({ state, now }: { state: State; now: number }) {
    const { head, steps } = state;
    const total = steps.reduce((sum, step) => sum + step.total, 0);
    const all = merged(steps);
    const failed = all.counts.failed ?? 0;
    const took = head.started === null ? "" : seconds(now - head.started);
    const silent = Math.round(state.silentFor());
    const [asked, ask] = useState(0);
    const waits = asked === (head.said?.n ?? 0) + 1;
    const press = (what: "stop" | "retry") => (): void => { ask((head.said?.n ?? 0) + 1); state.send({ do: what }); };
    return (
        <header class="fbp-head">
            <Icon state={head.state} label={false} />
            <h3>{head.flow}</h3>
            <span class="fbp-dim">run {head.run}{head.origin && `, goes on from run ${head.origin}`}</span>
            <span class={`fbp-word fbp-is-${head.state}`}>{word(head.state)}</span>
            <span class="fbp-time">{took}</span>
            <span class="fbp-dim fbp-tasks">{done(all)} / {total} {total === 1 ? "task" : "tasks"}{failed ? `, ${failed} failed` : ""}</span>
            {silent > 5 && <span class="fbp-silent">no news for {seconds(silent)}</span>}
            <span class="fbp-buttons">
                {head.state === "running" && <button type="button" class="fbp-button" disabled={waits} onClick={press("stop")}>Stop run</button>}
                {head.retry && <button type="button" class="fbp-button fbp-main" disabled={waits} title={head.retry} onClick={press("retry")}>{failed && head.state !== "lost" ? "Retry failed" : "Go on"}</button>}
            </span>
            <Bar shares={shares(all)} total={total} />
            <Spoken head={head} failed={failed} />
        </header>
    );
}

/** What is read out: how the run ended, what failed, what became of a command. Nothing while it only goes on. */
function Spoken({ head, failed }: { head: Head; failed: number }) {
    const state = head.state === "running" ? "" : `run ${head.run} ${word(head.state)}`;
    const lost = failed ? `${failed} failed` : "";
    return <span class="fbp-spoken" role="status">{[state, lost, head.said?.text].filter(Boolean).join(". ")}</span>;
}

function Notes({ head }: { head: Head }) {
    const lines: ComponentChildren[] = [];
    if (head.params.length) {
        lines.push(<dl class="fbp-params" aria-label="parameters">{head.params.map((param) => <div><dt>{param.name}</dt><dd title={plain(param.value)}>{plain(param.value)}</dd></div>)}</dl>);
    }
    if (head.trouble) lines.push(<p class="fbp-trouble">{coded(head.trouble)}</p>);
    if (head.error) lines.push(<p class="fbp-first"><b title={plain(head.error)}>{plain(head.error)}</b>{head.advice && <span>{coded(head.advice)}</span>}</p>);
    for (const note of head.notes) lines.push(<p class="fbp-note">{coded(note)}</p>);
    if (head.said) lines.push(<p class="fbp-dim" aria-hidden="true">{coded(head.said.text)}</p>);
    return lines.length ? <div class="fbp-notes">{lines}</div> : null;
}

/** What stands between backticks, as code. */
function coded(text: string): ComponentChildren[] {
    return plain(text).split("`").map((part, i, parts) => (i % 2 && i < parts.length - 1 ? <code>{part}</code> : part));
}

function merged(steps: Step[]): Pick<Step, "counts" | "total"> {
    const counts: Step["counts"] = {};
    for (const step of steps) {
        for (const [name, count] of Object.entries(step.counts)) counts[name as keyof Step["counts"]] = (counts[name as keyof Step["counts"]] ?? 0) + count;
    }
    return { counts, total: steps.reduce((sum, step) => sum + step.total, 0) };
}
