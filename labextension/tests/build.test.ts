/** What holds of the package and of what is built from it. */
import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { test } from "node:test";

const read = (path: string): string => readFileSync(path, "utf8");

test("the lock file names no registry", () => {
    assert.ok(!read("package-lock.json").includes("resolved"));
});

test("the package has the version of flowbook", () => {
    assert.ok(read("flowbook/_version.py").includes(`__version__ = "${JSON.parse(read("package.json")).version}"`));
});

const LOADS = [/\bimport\s*\(\s*["'`]/, /}\s*from\s*["']/, /importScripts\s*\(\s*["']/, /cdn\.|unpkg\.|jsdelivr|esm\.sh|skypack/];
const MAKES_CODE = [/[^.\w]eval\s*\(/, /[^.\w]Function\s*\(/]; // Vega has such, and is told to interpret instead: tests/browser tries that out

function without(name: string, wrongs: RegExp[]): void {
    const text = read(`flowbook/static/${name}`);
    for (const wrong of wrongs) {
        const found = wrong.exec(text);
        assert.equal(found && text.slice(Math.max(found.index - 60, 0), found.index + 60), null);
    }
}

test("nothing that is built loads anything from a network", () => {
    assert.ok(existsSync("flowbook/static/panel.js"), "build first: npm run build");
    for (const name of ["panel.js", "vega.js"]) without(name, LOADS);
});

test("the panel makes no code of text", () => without("panel.js", MAKES_CODE));
