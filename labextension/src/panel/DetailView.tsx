/** All about one task: its cards, what it printed, why it failed, what it left. */
import { useEffect, useRef } from "preact/hooks";
import { renderCard } from "../card/index";
import { spans } from "../text";
import type { Artifact, CardJson, Detail, Failure, Task } from "../types";
import { bytes, doing, memory, plain, seconds } from "./format";
import { Icon } from "./Icon";
import type { State } from "./model";
import { Output } from "./Output";
import { pieces } from "./pick";
import { Tabs, type Tab } from "./Tabs";

interface Props {
    state: State;
    task: Task;
    now: number;
    dark: boolean;
    tab: string | null;
    setTab: (tab: string) => void;
    stop: () => void;
}

export function DetailView({ state, task, now, dark, tab, setTab, stop }: Props) {
    const detail = state.detail(task.id);
    const runs = state.head.state === "running" && (task.state === "running" || task.state === "launched" || task.state === "backoff");
    const tabs = detail ? tabsOf(state, task, detail, dark) : [];
    const start = tabs.find((one) => one.id === (detail?.error ? "error" : "card"))?.id ?? tabs[0]?.id ?? "";
    const chosen = tabs.some((one) => one.id === tab) ? tab! : start;
    return (
        <section class="fbp-detail" aria-label={`task ${task.id}`}>
            <header>
                <Icon state={task.state} label={false} />
                <h4>{task.id}</h4>
                {task.item !== null && <span class="fbp-item" title={plain(task.item)}>{plain(task.item)}</span>}
                <span class="fbp-dim fbp-now">{doing(task)}{task.attempt ? `, attempt ${task.attempt + 1}` : ""}</span>
                {runs && <button type="button" class="fbp-button" onClick={stop}>Stop task</button>}
            </header>
            <Facts task={task} now={now} />
            {detail
                ? <Tabs key={task.id} tabs={tabs} chosen={chosen} choose={setTab} label={`about ${task.id}`} />
                : <p class="fbp-dim">{task.launched === null && task.ended === null ? (task.why ? "it did not run" : "it has not begun") : "asked for; the kernel has not answered yet"}</p>}
        </section>
    );
}

function Facts({ task, now }: { task: Task; now: number }) {
    const facts: [string, string][] = [];
    const add = (name: string, value: string): void => void (value && facts.push([name, value]));
    if (task.launched !== null) {
        add("took", seconds((task.ended ?? now) - task.launched));
        for (const { phase, from, to } of pieces(task, now)) { // one that goes on is not counted yet
            if ((task.ended !== null || to < now) && (phase !== "queued" || to - from > 0.05) && (phase !== "running" || task.running !== null)) add(phase, seconds(to - from));
        }
    }
    if (task.peak_mb !== null) add("peak", memory(task.peak_mb));
    if (task.cpu_s !== null) add("cpu", seconds(task.cpu_s));
    if (task.cached) add("from", `run ${task.cached}`);
    return (
        <dl class="fbp-facts">
            {facts.map(([name, value]) => <div><dt>{name}</dt><dd>{value}</dd></div>)}
            {task.why && <div class="fbp-why"><dt>{task.state === "skipped" || task.launched === null ? "why" : task.phase && task.state === "launched" ? "waits" : "ran"}</dt><dd>{plain(task.why)}</dd></div>}
        </dl>
    );
}

function tabsOf(state: State, task: Task, detail: Detail, dark: boolean): Tab[] {
    const cards = detail.cards.map((key) => ({ key, card: state.card(key) })).filter((one): one is { key: string; card: CardJson } => one.card !== null);
    const tabs: Tab[] = [];
    if (cards.length) {
        const content = () => cards.map(({ key, card }) => <CardView key={key} card={card} state={state} dark={dark} named={cards.length > 1} />);
        tabs.push({ id: "card", label: cards.length > 1 ? `Cards ${cards.length}` : "Card", content });
    }
    if (detail.error) tabs.push({ id: "error", label: "Error", content: () => <Error error={detail.error!} /> });
    tabs.push({ id: "output", label: "Output", content: () => <Output output={detail.output} size={detail.size} task={task.id} ended={task.ended !== null} /> });
    if (detail.artifacts.length) {
        tabs.push({ id: "artifacts", label: `Artifacts ${detail.artifacts.length + detail.left_out}`, content: () => <Artifacts artifacts={detail.artifacts} left={detail.left_out} /> });
    }
    return tabs;
}

export function CardView({ card, state, dark, named }: { card: CardJson; state: State; dark: boolean; named: boolean }) {
    const place = useRef<HTMLDivElement>(null);
    const end = useRef<(() => void) | null>(null);
    useEffect(() => {
        if (place.current) end.current = renderCard(place.current, card, { vega: state.vega, theme: dark ? "dark" : "light" });
    }, [card, dark]);
    useEffect(() => () => end.current?.(), []);
    return <div class="fbp-card">{named && <h5>{card.id}</h5>}<div ref={place} /></div>;
}

function Error({ error }: { error: Failure }) {
    const where = [error.cell, error.line !== null && `line ${error.line}`].filter(Boolean).join(", ");
    return (
        <div class="fbp-error">
            <p><b>{error.type}</b>{error.message && `: ${plain(error.message)}`}</p>
            {where && <p class="fbp-where">{where}{error.source_line && <code>{plain(error.source_line.trim())}</code>}</p>}
            {error.traceback && <pre tabIndex={0} aria-label="traceback">{spans(told(error.traceback)).map(({ text, style }) => <span class={style.map((name) => `ansi-${name}`).join(" ")}>{text}</span>)}</pre>}
        </div>
    );
}

/** Classes and functions, which stand behind the values. */
const isCode = ({ type }: Artifact): boolean => type === "type" || type === "function";

/** A traceback without the line above it, and without what makes IPython's first line as wide as a terminal. */
const told = (traceback: string): string => traceback.replace(/^\s*(?:\x1b\[[\d;]*m)*-{20,}\s*(?:\x1b\[[\d;]*m)*\n/, "").replace(/^(.{1,200}?) {2,}(Traceback \(most recent call last\))/, "$1  $2");

function Artifacts({ artifacts, left }: { artifacts: Artifact[]; left: number }) {
    return (
        <div class="fbp-scroll">
            <table class="fbp-artifacts" aria-label="artifacts">
                <thead><tr><th scope="col">name</th><th scope="col">type</th><th scope="col" class="fbp-number">size</th><th scope="col">value</th></tr></thead>
                <tbody>
                    {[...artifacts].sort((a, b) => Number(isCode(a)) - Number(isCode(b))).map((one) => (
                        <tr key={one.name}>
                            <th scope="row">{plain(one.name)}</th><td>{one.type}</td><td class="fbp-number">{one.size === null ? "" : bytes(one.size)}</td>
                            <td class="fbp-value" title={plain(one.repr)}><code>{plain(one.repr)}</code></td>
                        </tr>
                    ))}
                </tbody>
            </table>
            {left > 0 && <p class="fbp-dim">{left} more: <code>%flow artifacts</code></p>}
        </div>
    );
}
