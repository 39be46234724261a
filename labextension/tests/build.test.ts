/** What holds of the package itself. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

test("the lock file names no registry", () => {
    assert.ok(!readFileSync("package-lock.json", "utf8").includes("resolved"));
});
