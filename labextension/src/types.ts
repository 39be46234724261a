/** What the kernel sends and the panel draws: the traits of flowbook/kernel/panel_data.py, word by word.
 *
 * A test (tests/test_panel_data.py) reads this file and compares every interface with the Python side. Times are seconds since
 * the epoch by the clock of the engine, durations seconds, sizes bytes, memory MB of 10**6 bytes. Nothing here is trusted: all text comes from runs.
 */

export type Json = null | boolean | number | string | Json[] | { [name: string]: Json };

/** A card as flowbook/cards/wire.py reads it; its components are checked field by field where they are drawn. */
export interface CardJson {
    v: number;
    id: string;
    type: string;
    state: "running" | "succeeded" | "failed";
    n: number;
    at?: number;
    place?: { flow?: string; run?: string; step?: string; index?: number[]; attempt?: number };
    components: Component[];
    left_out?: number;
}

export interface Component {
    type: string;
    id?: string;
    [field: string]: Json | undefined;
}

/** The states that tasks and steps are counted by; "blocked" and the like are "waiting" with a `why`. */
export type State = "waiting" | "ready" | "launched" | "running" | "backoff" | "succeeded" | "failed" | "skipped" | "stopped";
export type Counts = Partial<Record<State, number>>;

/** The run as a whole. */
export interface Head {
    flow: string;
    run: string;
    token: string; // names the static status of the same run, which a live panel hides
    state: string; // running, succeeded, failed, stopped, or lost
    started: number | null;
    ended: number | null;
    now: number; // when this was sent; a running panel hears it once a second
    origin: string | null; // the run that this one resumes
    notes: string[];
    trouble: string | null;
    params: Param[];
    error: string | null;
    advice: string | null;
    said: Said | null;
    retry: string | null; // what Retry would do, null where it cannot do anything
}

export interface Param {
    name: string;
    value: string;
}

/** The answer to the last command, to be read out once for each `n`. */
export interface Said {
    n: number;
    text: string;
}

export interface Graph {
    width: number;
    height: number;
    nodes: GraphNode[];
    edges: GraphEdge[];
}

export interface GraphNode {
    step: string;
    x: number;
    y: number;
    w: number;
    h: number;
    label: string;
    note: string;
}

export interface GraphEdge {
    from: string;
    to: string;
    path: string;
    reads: string[];
}

export interface Step {
    step: string;
    state: string; // as the static status says it: running, failed, stopped, succeeded, skipped, waiting, not run
    phase: string | null; // of its tasks, as long as none of them runs: see Task
    counts: Counts;
    total: number;
    begun: number | null;
    seconds: number | null; // null while it goes on, counted from `begun`
    note: string;
    fan: boolean; // one task for each item
}

/** One task. Times that are null are not known, or have not come yet. */
export interface Task {
    id: string; // as people write it: train[2]
    step: string;
    index: number[];
    item: string | null;
    state: State;
    phase: string | null; // what a launched one does, where that is known better than its state tells: pulling, saving
    attempt: number;
    queued: number | null; // all that it needs was there
    launched: number | null;
    pod: { [phase: string]: number } | null; // when each phase of its pod began: queued, scheduled, pulling, starting, importing
    running: number | null; // its body began
    saving: number | null; // its body ended
    ended: number | null;
    peak_mb: number | null;
    cpu_s: number | null;
    why: string | null; // it ran anew, was skipped, or will never run
    cached: string | null; // the run whose result was taken over
}

export type ColumnKind = "task" | "state" | "time" | "item" | "metric" | "artifact";

export interface Column {
    name: string;
    kind: ColumnKind;
    numeric: boolean;
}

export type Cell = null | boolean | number | string;

/** The tasks of a fan-out. A cell of kind "time" is the seconds it took, or, while the task runs, minus the time at which it was launched. */
export interface Table {
    columns: Column[];
    rows: Cell[][];
    total: number;
}

/** What one task left, or leaves just now; under the key `detail ID` of the model. */
export interface Detail {
    output: Piece[];
    size: number; // of all that was printed and not written over, bytes; `output` is its end
    error: Failure | null;
    artifacts: Artifact[];
    left_out: number; // artifacts
    cards: string[]; // keys of the model
}

/** Something printed (mime "stream") or displayed; HTML was sanitised by the kernel, and is once more here. */
export interface Piece {
    mime: string;
    data: string;
}

export interface Failure {
    type: string;
    message: string;
    cell: string | null;
    line: number | null;
    source_line: string | null;
    traceback: string;
}

export interface Artifact {
    name: string;
    type: string;
    size: number | null;
    repr: string;
}

/** What the panel asks of the kernel. */
export interface Command {
    do: "stop" | "retry" | "show";
    step?: string;
    index?: number[];
}
