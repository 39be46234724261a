/** The panel's reading of a model: what is not there yet, clocks that differ, silence. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { State, type Model } from "../src/panel/model";
import type { Head, Json } from "../src/types";

function model(values: { [key: string]: unknown }): Model & { sent: Json[]; tell(key: string, changed?: object): void } {
    const heard = new Map<string, Set<(...args: unknown[]) => void>>();
    return {
        sent: [],
        get: (key) => values[key],
        on: (event, f) => void (heard.get(event) ?? heard.set(event, new Set()).get(event)!).add(f),
        off: (event, f) => void heard.get(event)?.delete(f),
        send(message) { this.sent.push(message); },
        tell: (event, changed) => heard.get(event)?.forEach((f) => f(changed && { changed })),
    };
}

const head = (more: Partial<Head>): Head => ({
    flow: "f", run: "1", token: "", state: "running", started: null, ended: null, now: 0, origin: null, notes: [], trouble: null,
    params: [], error: null, advice: null, said: null, retry: null, ...more,
});

test("a model without any state yet reads as an empty run", () => {
    const state = new State(model({}));

    assert.deepEqual([state.steps, state.tasks, state.tables, state.graph.nodes], [[], [], {}, []]);
    assert.equal(state.detail("x"), null);
    assert.equal(state.head.state, "running");
});

test("a browser whose clock is an hour off counts seconds as the engine does", () => {
    const state = new State(model({ head: head({ now: Date.now() / 1000 + 3600 }) }));

    assert.ok(Math.abs(state.now() - (Date.now() / 1000 + 3600)) < 1);
});

test("time stands still when the run has ended, and when nothing is heard any more", () => {
    assert.equal(new State(model({ head: head({ state: "failed", ended: 50, now: 60 }) })).now(), 50);

    const silent = new State(model({ head: head({ now: 60 }) }));
    silent.heardAt = Date.now() - 20_000;
    assert.equal(silent.now(), 60);
    assert.ok(silent.silentFor() > 19);
    assert.equal(new State(model({ head: head({ state: "lost", now: 60 }) })).silentFor(), 0);
});

test("many changes of a frame draw once, and none after the view is gone", () => {
    const frames: (() => void)[] = [];
    const page = globalThis as unknown as { requestAnimationFrame: unknown; cancelAnimationFrame: unknown };
    page.requestAnimationFrame = (f: () => void) => frames.push(f);
    page.cancelAnimationFrame = (id: number) => void (frames[id - 1] = () => {});
    const source = model({ head: head({ now: 1 }) });
    let drawn = 0;
    const end = new State(source).listen(() => (drawn += 1));
    for (let i = 0; i < 5; i++) source.tell("change");
    frames.forEach((frame) => frame());
    assert.equal(drawn, 1);

    source.tell("change");
    end();
    source.tell("change");
    frames.slice(1).forEach((frame) => frame());
    assert.equal(drawn, 1);
});

test("Vega that the kernel has not sent is refused in words", async () => {
    await assert.rejects(new State(model({})).vega(), /cannot load Vega/);
});

test("a click that nobody answers is told of, until it is answered", () => {
    const values = { head: head({ said: { n: 1, text: "before" } }) };
    const state = new State(model(values));
    state.send({ do: "show", step: "a", index: [] });
    assert.equal(state.waits(), 0);

    state.send({ do: "stop" });
    const now = Date.now;
    Date.now = () => now() + 4_000;
    try {
        assert.match(state.head.trouble ?? "", /has not heard this click yet/);
        values.head = head({ said: { n: 2, text: "asked" } });
        assert.deepEqual([state.head.trouble, state.waits()], [null, 0]);
    } finally {
        Date.now = now;
    }
});

test("a panel whose kernel has ended says so, unless its run has ended or news come", () => {
    (globalThis as unknown as { requestAnimationFrame: unknown }).requestAnimationFrame = () => 1;
    const values = { head: head({ run: "7" }) };
    const source = model(values);
    const state = new State(source);
    state.listen(() => {});
    source.tell("comm_live_update");
    assert.ok(state.gone);
    assert.match(state.head.trouble ?? "", /`%flow attach 7`/);

    values.head = head({ state: "succeeded", ended: 5 });
    assert.equal(state.head.trouble, null);
    values.head = head({});
    source.tell("change");
    assert.deepEqual([state.gone, state.head.trouble], [false, null]);
});

test("a card that is not drawn changes without a drawing", () => {
    const frames: (() => void)[] = [];
    Object.assign(globalThis, { requestAnimationFrame: (f: () => void) => frames.push(f), cancelAnimationFrame: () => {} });
    const told = model({ "card a main": {}, "card b main": {} });
    const state = new State(told);
    let drawings = 0;
    state.listen(() => { drawings += 1; state.card("card a main"); });
    const next = (changed?: object): number => {
        told.tell("change", changed);
        frames.splice(0).forEach((f) => f());
        return drawings;
    };

    assert.equal(next({ "card b main": 1 }), 0);
    assert.equal(next({ head: 1, "card b main": 1 }), 1);
    assert.equal(next({ "card b main": 1 }), 1);
    assert.equal(next({ "card a main": 1 }), 2);
    assert.equal(next(), 3, "where the model does not say what changed, all is drawn");
});
