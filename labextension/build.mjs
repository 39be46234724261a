// Builds what the notebook loads: flowbook/static/panel.js, panel.css and vega.js. Nothing in them comes from a network later.
//
//     npm run build            minified, and refused above the size that a notebook may carry
//     npm run build -- --watch again at every change, with maps
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, statSync } from "node:fs";
import { gzipSync } from "node:zlib";
import * as esbuild from "esbuild";
import { BUNDLE } from "./bundle.mjs";

const OUT = "flowbook/static";
const LIMITS = { "panel.js": 150_000, "panel.css": 40_000, "vega.js": 1_200_000 }; // bytes; the panel stands in every notebook that keeps widgets
const SOURCES = {
    "panel.js": "labextension/src/panel/widget.ts",
    "panel.css": "labextension/src/panel/panel.css",
    "vega.js": "labextension/src/vega.ts",
};
const watch = process.argv.includes("--watch");

const options = (name) => ({
    entryPoints: [SOURCES[name]],
    outfile: `${OUT}/${name}${watch ? "" : ".new"}`,
    bundle: true,
    format: "esm",
    target: "es2022",
    charset: "utf8",
    legalComments: "none",
    minify: !watch,
    sourcemap: watch ? "inline" : false,
    ...BUNDLE,
    define: { "process.env.NODE_ENV": '"production"' },
});

mkdirSync(OUT, { recursive: true });
const names = Object.keys(SOURCES).filter((name) => existsSync(SOURCES[name]));
if (watch) {
    await Promise.all(names.map(async (name) => (await esbuild.context(options(name))).watch()));
} else {
    for (const name of names) await esbuild.build(options(name));
    for (const name of names) {
        const size = statSync(`${OUT}/${name}.new`).size;
        const zipped = gzipSync(readFileSync(`${OUT}/${name}.new`)).length;
        console.log(`${name.padEnd(10)} ${(size / 1000).toFixed(0).padStart(5)} KB, zipped ${(zipped / 1000).toFixed(0)} KB`);
        if (size > LIMITS[name]) {
            for (const each of names) rmSync(`${OUT}/${each}.new`, { force: true });
            console.error(`${name} has ${size} bytes; at most ${LIMITS[name]} are allowed: a notebook carries it`);
            process.exit(1);
        }
    }
    for (const name of names) renameSync(`${OUT}/${name}.new`, `${OUT}/${name}`); // a kernel never reads half a file
}
