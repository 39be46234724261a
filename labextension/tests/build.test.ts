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

test("nothing that is built loads anything or makes code of text", () => {
    const built = ["panel.js", "vega.js"].map((name) => `flowbook/static/${name}`).filter(existsSync);
    assert.ok(built.length > 0);
    for (const path of built) {
        const text = read(path);
        for (const wrong of [/\bimport\s*\(\s*["'`]/, /}\s*from\s*["']/, /importScripts\s*\(\s*["']/, /[=(,;!&|?:]\s*eval\s*\(/, /[^.\w]Function\s*\(\s*["'`]/, /cdn\.|unpkg\.|jsdelivr|esm\.sh|skypack/]) {
            const found = wrong.exec(text);
            assert.equal(found && text.slice(Math.max(found.index - 60, 0), found.index + 60), null, path);
        }
    }
});
