// Runs the tests of the pure modules: labextension/tests/*.test.ts, bundled to plain JavaScript, under node's own runner.
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { spawnSync } from "node:child_process";
import * as esbuild from "esbuild";
import { BUNDLE } from "./bundle.mjs";

const folder = mkdtempSync(join(tmpdir(), "flowbook-tests-"));
const tests = readdirSync("labextension/tests").filter((name) => /\.test\.tsx?$/.test(name));
await esbuild.build({
    entryPoints: tests.map((name) => `labextension/tests/${name}`),
    outdir: folder,
    outExtension: { ".js": ".mjs" },
    ...BUNDLE,
    platform: "node",
    target: "node20",
    sourcemap: "inline",
});
const built = tests.map((name) => join(folder, name.replace(/\.tsx?$/, ".mjs")));
const done = spawnSync(process.execPath, ["--enable-source-maps", "--test", "--test-reporter=spec", ...built], { stdio: "inherit" });
rmSync(folder, { recursive: true, force: true });
process.exit(done.status ?? 1);
