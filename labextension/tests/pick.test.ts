/** Order, axes, phases and words of the panel. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { aligned, bytes, cell, doing, kind, memory, number, plain, seconds, shares } from "../src/panel/format";
import { axes, empties, first, followed, matches, pieces, scale, settled, sorted, ticks, timed } from "../src/panel/pick";
import type { Cell, Column, Step, Task } from "../src/types";

const task = (id: string, more: Partial<Task> = {}): Task => ({
    id, step: id.split("[")[0]!, index: [], item: null, state: "waiting", phase: null, attempt: 0, queued: null, launched: null, pod: null, running: null,
    saving: null, ended: null, peak_mb: null, cpu_s: null, why: null, cached: null, ...more,
});

test("rows are ordered by number, then by text, and what is missing stands last in both directions", () => {
    const rows: Cell[][] = [["a", 10], ["b", null], ["c", 9], ["d", -1]];

    assert.deepEqual(sorted(rows, { column: 1, down: false }).map((row) => row[0]), ["d", "c", "a", "b"]);
    assert.deepEqual(sorted(rows, { column: 1, down: true }).map((row) => row[0]), ["a", "c", "d", "b"]);
    assert.deepEqual(sorted([["t[10]"], ["t[9]"]], { column: 0, down: false }), [["t[9]"], ["t[10]"]]);
    assert.deepEqual(sorted(rows, null), rows);
    assert.deepEqual(sorted([["x", true], ["y", "b"], ["z", 2]], { column: 1, down: false }).map((row) => row[0]), ["z", "y", "x"]);
});

test("equal rows stay in their order, also downwards", () => {
    const rows: Cell[][] = [["a", 1], ["b", 1], ["c", 1]];

    assert.deepEqual(sorted(rows, { column: 1, down: true }), rows);
});

test("the time of a running task goes on, that of an ended one stands", () => {
    const columns: Column[] = [{ name: "task", kind: "task", numeric: false }, { name: "time", kind: "time", numeric: true }];
    const rows: Cell[][] = [["a", 2.5], ["b", -1000], ["c", null]];

    assert.deepEqual(timed({ columns, rows, total: 3 }, 1003), [["a", 2.5], ["b", 3], ["c", null]]);
    assert.deepEqual(timed({ columns, rows, total: 3 }, 900)[1], ["b", 0]);
});

test("a scatter begins with an item against a result", () => {
    const column = (name: string, kind: Column["kind"], numeric = true): Column => ({ name, kind, numeric });

    assert.deepEqual(axes([column("task", "task", false), column("lr", "item"), column("time", "time"), column("loss", "metric"), column("score", "artifact")]), [1, 4]);
    assert.deepEqual(axes([column("lr", "item"), column("time", "time")]), [0, 1]);
    assert.deepEqual(axes([column("kind", "item", false), column("time", "time"), column("loss", "metric")]), [1, 2]);
    assert.equal(axes([column("time", "time")]), null);
});

test("learning rates are put on a logarithmic scale, numbers that are close or not positive are not", () => {
    assert.deepEqual(scale([0.0001, 0.1]).ticks, [0.0001, 0.001, 0.01, 0.1]);
    assert.equal(scale([0.0001, 0.1]).log, true);
    assert.deepEqual(scale([0.002, 0.7]).ticks, [0.003, 0.01, 0.03, 0.1, 0.3]);
    assert.equal(scale([0, 0.1]).log, false);
    assert.equal(scale([1, 3]).log, false);
    assert.equal(scale([5, 5]).place(5), 0.5);
    assert.deepEqual(scale([]).ticks, []);
    for (const value of [1, 2, 3]) assert.ok(scale([1, 3]).place(value) > 0 && scale([1, 3]).place(value) < 1);
});

test("ticks are round and few", () => {
    assert.deepEqual(ticks(0, 4.9, 4), [0, 1, 2, 3, 4]);
    assert.deepEqual(ticks(5, 90, 4), [20, 40, 60, 80]);
    assert.deepEqual(ticks(0.1, 0.3, 4), [0.1, 0.15, 0.2, 0.25, 0.3].filter((tick) => ticks(0.1, 0.3, 4).includes(tick)));
    assert.deepEqual(ticks(1, 1, 4), []);
    assert.deepEqual(ticks(0, Infinity, 4), []);
});

test("one looks first at the first failure, then at what runs and has a card, then at what ended last", () => {
    const none = (): boolean => false;
    const tasks = [task("a", { state: "succeeded", ended: 1 }), task("b", { state: "failed", ended: 9 }), task("c", { state: "failed", ended: 5 })];

    assert.equal(first(tasks, none), "c");
    assert.equal(first([task("a", { state: "running" }), task("b", { state: "running" })], (id) => id === "b"), "b");
    assert.equal(first([task("a", { state: "succeeded", ended: 1 }), task("b", { state: "succeeded", ended: 2 }), task("c")], none), "b");
    assert.equal(first([], none), null);
});

test("a task's time is cut into phases without gaps or negative pieces", () => {
    const whole = task("a", { state: "succeeded", queued: 0, launched: 2, running: 3, saving: 8, ended: 9 });
    assert.deepEqual(pieces(whole, 99).map((piece) => [piece.phase, piece.from, piece.to]), [["queued", 0, 2], ["starting", 2, 3], ["running", 3, 8], ["saving", 8, 9]]);

    assert.deepEqual(pieces(task("b", { state: "launched", launched: 5 }), 7), [{ phase: "starting", from: 5, to: 7 }]);
    assert.deepEqual(pieces(task("c", { state: "failed", launched: 5, ended: 7 }), 9), [{ phase: "running", from: 5, to: 7 }]);
    assert.deepEqual(pieces(task("d", { launched: 5, running: 4, ended: 7, saving: 9 }), 9).every((piece) => piece.to > piece.from), true);
    assert.deepEqual(pieces(task("e"), 9), []);
});

test("a pod's phases stand one behind the other, those that nobody saw take no room", () => {
    const cut = (more: Partial<Task>, now = 99) => pieces(task("a", { launched: 2, ...more }), now).map((piece) => [piece.phase, piece.from, piece.to]);
    const pod = { queued: 2, scheduled: 3, pulling: 4, starting: 9, importing: 10 };

    assert.deepEqual(cut({ pod, queued: 0, running: 11, saving: 15, ended: 16 }), [
        ["queued", 0, 3], ["scheduled", 3, 4], ["pulling", 4, 9], ["starting", 9, 10], ["importing", 10, 11], ["running", 11, 15], ["saving", 15, 16],
    ]);
    assert.deepEqual(cut({ pod: { queued: 2 } }, 7), [["queued", 2, 7]]);
    assert.deepEqual(cut({ pod: { queued: 2, starting: 3 }, ended: 6 }), [["queued", 2, 3], ["starting", 3, 6]], "it ended before its body began");
    assert.deepEqual(cut({ pod: { queued: 2, pulling: 5, starting: 4 }, running: 1, ended: 6 }), [["queued", 2, 5], ["running", 5, 6]], "clocks that disagree");
});

test("a phase is a kind of a state, drawn as that", () => {
    assert.deepEqual(["pulling", "queued", "saving", "running", "failed"].map(kind), ["launched", "launched", "running", "running", "failed"]);
    assert.equal(doing(task("a", { state: "launched", phase: "pulling" })), "pulling");
    assert.equal(doing(task("a", { state: "launched" })), "starting");
});

test("what is searched for is found whatever its case, and no text is lost", () => {
    assert.deepEqual(matches("a rate, Rate", "RATE"), ["a ", "rate", ", ", "Rate", ""]);
    assert.deepEqual(matches("abc", ""), ["abc"]);
    assert.equal(matches("İxİx", "x").join(""), "İxİx");
    assert.equal(matches("aaa", "aa").join(""), "aaa");
});

test("numbers and sizes read well", () => {
    assert.deepEqual([0.0424, 0.42, 9.96, 59.7, 75, 7322, -3].map(seconds), ["42 ms", "0.4 s", "10.0 s", "1:00 min", "1:15 min", "2:02 h", "0 ms"]);
    assert.deepEqual([seconds(null), seconds(NaN)], ["", ""]);
    assert.deepEqual([48.3, 1234].map(memory), ["48 MB", "1.2 GB"]);
    assert.deepEqual([950, 12_345, 3_400_000].map(bytes), ["950 B", "12 kB", "3 MB"]);
    assert.deepEqual([0.0312345, 1e-7, 1234567, 2.5e12, 0, 1 / 3].map(number), ["0.03123", "1e-7", "1234567", "2.5e12", "0", "0.3333"]);
    assert.deepEqual([null, true, "x"].map(cell), ["", "true", "x"]);
});

test("a bar shows what is done before what runs, and nothing that is not there", () => {
    assert.deepEqual(shares({ counts: { failed: 1, running: 2, launched: 1, waiting: 9 }, total: 13 }), [{ state: "running", count: 3 }, { state: "failed", count: 1 }]);
});

test("the task that is followed stays for a while, but a failure is shown at once", () => {
    const none = (): boolean => false;
    const running = [task("a", { state: "succeeded", launched: 1, ended: 2 }), task("b", { state: "running", launched: 2 })];
    const failed = [...running, task("c", { state: "failed", launched: 2, ended: 3 })];

    assert.equal(followed(running, none, null, 10, false), "b");
    assert.equal(followed(running, none, { id: "a", at: 9 }, 10, false), "a", "it has just ended");
    assert.equal(followed(running, none, { id: "a", at: 7 }, 10, false), "b");
    assert.equal(followed(failed, none, { id: "b", at: 9 }, 10, false), "c");
    assert.equal(followed([task("b", { state: "running", launched: 2 }), task("a", { state: "running", launched: 1 })], none, { id: "a", at: 0 }, 99, false), "a", "it runs on");
    assert.equal(followed(running, none, { id: "a", at: 9 }, 10, true), "b", "the run has ended");
    assert.equal(followed(running, none, { id: "gone", at: 9 }, 10, false), "b");
    assert.equal(followed([], none, { id: "a", at: 9 }, 10, false), null);
});

test("of a run that has ended no task waits to try again or runs", () => {
    const tasks = [task("a", { state: "backoff" }), task("b", { state: "running" }), task("c", { state: "failed" }), task("d")];

    assert.deepEqual(settled(tasks, "stopped").map((one) => one.state), ["stopped", "stopped", "failed", "waiting"]);
    assert.deepEqual(settled(tasks, "running"), tasks);
    assert.deepEqual(settled(tasks, "lost"), tasks, "another engine may go on with it");
});

test("a fan-out has no items where what needs it went on, also one in another", () => {
    const step = (name: string, more: Partial<Step> = {}): Step => ({ step: name, state: "waiting", phase: null, counts: {}, total: 0, begun: null, seconds: null, note: "", fan: true, ...more });
    const edges = [{ from: "outer", to: "inner" }, { from: "inner", to: "join" }];
    const join = step("join", { fan: false, total: 1 });

    assert.deepEqual([...empties([step("outer"), step("inner"), join], edges)], []);
    assert.deepEqual([...empties([step("outer"), step("inner"), { ...join, begun: 5 }], edges)], ["inner", "outer"]);
    assert.deepEqual([...empties([step("outer", { total: 2 }), step("inner"), { ...join, begun: 5 }], edges)], ["inner"]);
});

test("numbers of a column stand with their points below each other", () => {
    const [digit, point] = ["\u2007", "\u2008"];

    assert.deepEqual(aligned([0.25, 12.5, 3, null]), ["0.25", `12.5${digit}`, `3${point}${digit}${digit}`, ""]);
    assert.deepEqual(aligned([1, 20]), ["1", "20"]);
    assert.deepEqual(aligned([1e-7, 0.5, "x", true]), ["1e-7", "0.5", "x", "true"]);
});

test("signs that turn a text around are made visible", () => {
    assert.equal(plain("evil\u202egnp.exe \u2066\u200f"), "evil\\u202egnp.exe \\u2066\\u200f");
    assert.equal(plain("\u05e9\u05dc\u05d5\u05dd"), "\u05e9\u05dc\u05d5\u05dd", "Hebrew stays as it is");
});
