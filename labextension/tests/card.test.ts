/** The pure parts of cards: scales and paths of line charts, YAML, comparing, numbers. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { yaml } from "../src/card/data";
import { same, shown } from "../src/card/dom";
import { label, latest, type Line, nearest, path, scale, ticks } from "../src/card/scale";

const line = (x: number[], y: (number | null)[]): Line => ({ name: "a", x, y, count: x.length });

test("ticks are round and few, whatever the range", () => {
    assert.deepEqual(ticks(0, 1, 5), [0, 0.2, 0.4, 0.6, 0.8, 1]);
    assert.deepEqual(ticks(-0.3, 0.3, 3), [-0.2, 0, 0.2]);
    assert.deepEqual(ticks(1, 1, 5), []);
    assert.deepEqual(ticks(0, Number.POSITIVE_INFINITY, 5), []);
    for (const high of [1e-300, 1e-5, 3, 999, 1e12, 1e300]) assert.ok(ticks(0, high, 5).length <= 7, String(high));
});

test("a scale holds every value, also a single one, and refuses what has no distance", () => {
    assert.deepEqual(scale([1, 3], 0, 100), { low: 1, high: 3, start: 0, stop: 100 });
    assert.deepEqual(scale([5], 0, 100), { low: 4.5, high: 5.5, start: 0, stop: 100 });
    assert.equal(scale([], 0, 100), null);
    assert.equal(scale([1e308, -1e308], 0, 100), null);
});

test("a gap lifts the pen, and a point between gaps is still seen", () => {
    const x = { low: 0, high: 4, start: 0, stop: 40 };
    const y = { low: 0, high: 1, start: 10, stop: 0 };
    assert.equal(path(line([0, 1, 2, 3, 4], [0, 1, null, 1, null]), x, y), "M0.0,10.0L10.0,0.0M30.0,0.0h0");
    assert.equal(path(line([], []), x, y), "");
});

test("the nearest and the latest number are found among gaps", () => {
    const some = line([0, 10, 20], [1, null, 3]);
    assert.equal(nearest(some, 11), 2);
    assert.equal(nearest(line([1], [null]), 1), null);
    assert.equal(latest(line([0, 1], [5, null])), 5);
    assert.equal(latest(line([], [])), null);
});

test("numbers are read as people write them", () => {
    assert.deepEqual([1234567, 0.1 + 0.2, 0, 1e-9, -2.5e20, 0.0966667].map((n) => shown(n)), ["1,234,567", "0.3", "0", "1e-9", "-2.5e20", "0.0966667"]);
    assert.deepEqual([0, 0.25, 1200, 5e6, 1e-7].map(label), ["0", "0.25", "1,200", "5e6", "1e-7"]);
});

test("values of JSON are compared by what they hold", () => {
    assert.ok(same({ a: [1, { b: null }] }, { a: [1, { b: null }] }));
    assert.ok(!same({ a: 1 }, { a: 1, b: undefined }));
    assert.ok(!same([1, 2], { 0: 1, 1: 2 }));
    assert.ok(!same({ a: 1 }, { b: 1 }));
    assert.ok(!same(null, {}));
});

test("YAML reads as what it is", () => {
    const data = { name: "net", layers: [64, [1, 2]], on: "yes", odd: "a: b", empty: [], none: null, deep: { x: "" } };
    assert.equal(yaml(data), 'name: net\nlayers:\n  - 64\n  -\n    - 1\n    - 2\n"on": "yes"\nodd: "a: b"\nempty: []\nnone: null\ndeep:\n  x: ""');
    assert.equal(yaml("as it is"), "as it is");
});
