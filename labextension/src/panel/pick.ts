/** What is shown of many: the order of a table, the axes of a scatter, the task that one looks at first, the pieces of a timeline. Pure. */
import type { Cell, Column, Step, Table, Task } from "../types";
import { PHASES } from "./format";

export interface Order {
    column: number;
    down: boolean;
}

/** Rows in order: numbers by size, texts by alphabet, what is missing last. Equal rows stay as they are. */
export function sorted(rows: readonly Cell[][], order: Order | null): Cell[][] {
    if (!order) return [...rows];
    const sign = order.down ? -1 : 1;
    return [...rows].sort((a, b) => {
        const x = a[order.column] ?? null, y = b[order.column] ?? null;
        if (x === null || y === null) return Number(x === null) - Number(y === null);
        return sign * compared(x, y);
    });
}

function compared(a: NonNullable<Cell>, b: NonNullable<Cell>): number {
    if (typeof a === "string" || typeof b === "string") return String(a).localeCompare(String(b), "en", { numeric: true });
    return Number(a) - Number(b);
}

/** The cells with the time of running tasks made what has passed of it. */
export function timed(table: Table, now: number): Cell[][] {
    const at = table.columns.findIndex((column) => column.kind === "time");
    return table.rows.map((row) => {
        const value = row[at];
        return typeof value === "number" && value < 0 ? row.map((cell, i) => (i === at ? Math.max(now + value, 0) : cell)) : row;
    });
}

/** The columns that a scatter begins with: an item against a result, as far as there are such. */
export function axes(columns: readonly Column[]): [number, number] | null {
    const numeric = columns.flatMap((column, i) => (column.numeric ? [i] : []));
    if (numeric.length < 2) return null;
    const first = (...kinds: string[]): number | undefined => kinds.map((kind) => numeric.find((i) => columns[i]?.kind === kind)).find((i) => i !== undefined);
    const y = first("artifact", "metric", "time") ?? numeric[1]!;
    const x = numeric.find((i) => columns[i]?.kind === "item" && i !== y) ?? numeric.find((i) => i !== y)!;
    return [x, y];
}

export interface Scale {
    place(value: number): number;
    ticks: number[];
    log: boolean;
}

/** From values to 0…1. Logarithmic where all are positive and two decades or more lie between them, as with learning rates. */
export function scale(values: readonly number[]): Scale {
    const low = Math.min(...values), high = Math.max(...values);
    if (values.length && low > 0 && high / low >= 100) {
        const a = Math.log10(low), b = Math.log10(high);
        const ticks: number[] = [];
        const stride = Math.max(1, Math.ceil((b - a) / 5));
        const within = b - a < 2.6 ? ["1", "3"] : ["1"]; // of two powers of ten one also sees what lies between
        for (let power = Math.ceil(a - 1); power <= b + 1e-9; power += stride) {
            for (const digit of within) ticks.push(Number(`${digit}e${power}`));
        }
        const margin = (b - a) * 0.04;
        const inside = ticks.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
        return { place: (value) => (Math.log10(value) - a + margin) / (b - a + 2 * margin), ticks: inside, log: true };
    }
    if (!values.length || low === high) return { place: () => 0.5, ticks: values.length ? [low] : [], log: false };
    const margin = (high - low) * 0.06; // no point stands on the frame
    return { place: (value) => (value - low + margin) / (high - low + 2 * margin), ticks: ticks(low, high, 4), log: false };
}

/** Round numbers between two, about so many. */
export function ticks(low: number, high: number, about: number): number[] {
    const rough = (high - low) / about;
    if (!(rough > 0) || !Number.isFinite(rough)) return [];
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough * 0.7)!;
    const found: number[] = [];
    for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) found.push(Number((n * step).toPrecision(12)));
    return found;
}

/** The task that is looked at while nobody has chosen one: what failed, else what runs, else what ended last. */
export function first(tasks: readonly Task[], hasCard: (id: string) => boolean): string | null {
    const failed = tasks.filter((task) => task.state === "failed");
    if (failed.length) return failed.reduce((a, b) => ((a.ended ?? 0) <= (b.ended ?? 0) ? a : b)).id;
    const running = tasks.filter((task) => task.state === "running" || task.state === "launched");
    const seen = running.find((task) => hasCard(task.id)) ?? running[0];
    if (seen) return seen.id;
    const ended = tasks.filter((task) => task.ended !== null);
    if (ended.length) return (ended.filter((task) => hasCard(task.id)).at(-1) ?? ended.at(-1)!).id;
    return tasks[0]?.id ?? null;
}

const HOLD_S = 2;

/** The task that a view shows while nobody has chosen one. It stays with a task until that has ended and was seen for a while, so that nothing flickers
 * where short tasks come and go; only a failure is shown at once, and the end of the run. `before.at` and `now` are seconds by the same clock. */
export function followed(tasks: readonly Task[], hasCard: (id: string) => boolean, before: { id: string; at: number } | null, now: number, ended: boolean): string | null {
    const next = first(tasks, hasCard);
    const old = before && tasks.find((task) => task.id === before.id);
    if (!old || ended) return next;
    if (old.state !== "failed" && tasks.some((task) => task.id === next && task.state === "failed")) return next;
    return old.state === "running" || (old.launched !== null && now - before.at < HOLD_S) ? old.id : next;
}

/** Tasks of a run that has ended: none of them waits or runs any more, whatever was heard of them last. */
export function settled(tasks: readonly Task[], run: string): Task[] {
    const open = ["launched", "running", "backoff"];
    return run === "running" || run === "lost" ? [...tasks] : tasks.map((task) => (open.includes(task.state) ? { ...task, state: "stopped", phase: null } : task));
}

/** Fan-outs of which one knows that they have no items: none came, and what needs them went on. */
export function empties(steps: readonly Step[], edges: readonly { from: string; to: string }[]): Set<string> {
    const known = new Map(steps.map((step) => [step.step, step]));
    const found = new Set<string>();
    for (const step of [...steps].reverse()) {
        const goesOn = (to: string): boolean => found.has(to) || (known.get(to)?.begun ?? null) !== null;
        if (step.fan && !step.total && edges.some((edge) => edge.from === step.step && goesOn(edge.to))) found.add(step.step);
    }
    return found;
}

export interface Piece {
    phase: (typeof PHASES)[number];
    from: number;
    to: number;
}

/** The phases of a task, seconds by the engine's clock. What is not known of an ended one counts as running. */
export function pieces(task: Task, now: number): Piece[] {
    const { queued, launched, pod, ended } = task;
    if (launched === null) return [];
    const end = ended ?? now;
    const known: { [phase: string]: number | null } = {
        starting: launched, ...pod, queued: queued ?? pod?.queued ?? null, running: task.running ?? (ended !== null && !pod ? launched : null), saving: task.saving,
    };
    if (pod) known.starting = pod.starting ?? null;
    const found: Piece[] = [];
    for (const phase of PHASES) {
        const at = known[phase] ?? null, last = found.at(-1);
        if (at === null) continue;
        const from = Math.min(Math.max(at, last?.from ?? at), end);
        if (last) last.to = from;
        found.push({ phase, from, to: end });
    }
    return found.filter((piece) => piece.to > piece.from);
}

/** The part of a text that matches, and what is between: `["a ", "RATE", " b"]` for "rate"; every second piece is a match. */
export function matches(text: string, query: string): string[] {
    if (!query) return [text];
    const found: string[] = [];
    const low = text.toLowerCase(), wanted = query.toLowerCase();
    if (low.length !== text.length) return [text]; // letters that change their length: rather no match than a wrong one
    let at = 0;
    for (let next = low.indexOf(wanted); next >= 0; next = low.indexOf(wanted, at)) {
        found.push(text.slice(at, next), text.slice(next, next + wanted.length));
        at = next + wanted.length;
    }
    return [...found, text.slice(at)];
}
