/** Numbers and states in words. Pure. */
import type { Cell, Step, Task } from "../types";

/** A duration as people read it: 0 → "0 ms", 0.042 → "42 ms", 0.42 → "0.4 s", 75 → "1:15 min", 7322 → "2:02 h". */
export function seconds(value: number | null): string {
    if (value === null || !Number.isFinite(value)) return "";
    const s = Math.max(value, 0);
    if (s < 0.0995) return `${Math.round(s * 1000)} ms`;
    if (s < 10) return `${s.toFixed(1)} s`;
    if (s < 59.5) return `${Math.round(s)} s`;
    const whole = Math.round(s);
    if (whole < 3600) return `${Math.floor(whole / 60)}:${two(whole % 60)} min`;
    return `${Math.floor(whole / 3600)}:${two(Math.floor((whole % 3600) / 60))} h`;
}

const two = (n: number): string => String(n).padStart(2, "0");

/** Megabytes of 10**6 bytes: 48.3 → "48 MB", 1234 → "1.2 GB". */
export function memory(mb: number): string {
    return mb < 1000 ? `${Math.round(mb)} MB` : `${(mb / 1000).toFixed(1)} GB`;
}

/** 950 → "950 B", 12_345 → "12 kB". */
export function bytes(size: number): string {
    if (size < 1000) return `${size} B`;
    if (size < 1e6) return `${Math.round(size / 1000)} kB`;
    return memory(size / 1e6);
}

/** A number short enough for a cell, with four digits that count: 0.0312345 → "0.03123", 1e-7 → "1e-7", 1234567 → "1234567". */
export function number(value: number): string {
    if (!Number.isFinite(value)) return String(value);
    if (Number.isInteger(value) && Math.abs(value) < 1e9) return String(value);
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-4 || size >= 1e9)) return value.toExponential(3).replace(/\.?0+e/, "e").replace("e+", "e");
    return String(Number(value.toPrecision(4)));
}

export function cell(value: Cell): string {
    if (value === null) return "";
    return typeof value === "number" ? number(value) : plain(String(value));
}

const PAD = "\u2007", POINT = "\u2008"; // as wide as a digit, as a point

/** The numbers of a column, short, and with their points below each other: [0.25, 12.5] → ["0.25", "12.5 "]. */
export function aligned(values: readonly Cell[]): string[] {
    const texts = values.map(cell);
    const behind = values.map((value, i) => (typeof value === "number" && !texts[i]!.includes("e") ? texts[i]!.split(".")[1]?.length ?? 0 : 0));
    const most = Math.max(0, ...behind);
    return texts.map((text, i) => (most && typeof values[i] === "number" && !text.includes("e") ? text + (behind[i] ? "" : POINT) + PAD.repeat(most - behind[i]!) : text));
}

/** A text in one line, with the signs made visible that would turn around what stands after them: a file named "gnp.exe" must not read as "exe.png". */
export function plain(text: string): string {
    return text.replace(/[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, (sign) => `\\u${sign.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

const WORDS: { [state: string]: string } = {
    launched: "starting",
    backoff: "waits to try again",
    ready: "ready",
    lost: "without an engine",
};

/** How a state is called. */
export function word(state: string): string {
    return WORDS[state] ?? state;
}

/** What a task does, in its order. Without a pod it is queued, starting, running, saving. */
export const PHASES = ["queued", "scheduled", "pulling", "starting", "importing", "running", "saving"] as const;

/** The state that a phase belongs to; a state is its own. */
export function kind(state: string): string {
    const at = PHASES.indexOf(state as "queued");
    return at < 0 ? state : at < 5 ? "launched" : "running";
}

/** What a task does, as exactly as it is known. */
export const doing = (task: Task): string => task.phase ?? word(task.state);

export const DONE = ["succeeded", "failed", "skipped", "stopped"] as const;

/** A step's tasks in the order in which its bar shows them. */
export function shares(step: Pick<Step, "counts" | "total">): { state: string; count: number }[] {
    const of = (...states: (keyof Step["counts"])[]): number => states.reduce((sum, state) => sum + (step.counts[state] ?? 0), 0);
    const all = [
        { state: "succeeded", count: of("succeeded") },
        { state: "running", count: of("launched", "running") },
        { state: "failed", count: of("failed") },
        { state: "backoff", count: of("backoff") },
        { state: "stopped", count: of("stopped", "skipped") },
    ];
    return all.filter((share) => share.count > 0);
}

export function done(step: Pick<Step, "counts">): number {
    return DONE.reduce((sum, state) => sum + (step.counts[state] ?? 0), 0);
}
