// How the sources become plain JavaScript, the same for what is built and for what is tested.
import { readFile } from "node:fs/promises";

const STUBS = ["entities", "linkify-it", "mdurl", "punycode.js", "uc.micro"]; // stubs/README.md says why

// Rules of markdown-it that CommonMark does not use and that would stay in the bundle, since a list names them.
const UNUSED = /^\t\["(?:linkify|replacements|smartquotes)", \w+(?:\$1)?\],?\n/gm;

const lean = {
    name: "lean markdown-it",
    setup(build) {
        build.onLoad({ filter: /markdown-it[\\/]dist[\\/]markdown-it\.mjs$/ }, async ({ path }) => {
            const text = await readFile(path, "utf8");
            const found = text.match(UNUSED)?.length ?? 0;
            if (found !== 4) throw new Error(`markdown-it has changed: ${found} of 4 rules that are left out were found`);
            return { contents: text.replace(UNUSED, "") };
        });
    },
};

export const BUNDLE = {
    plugins: [lean],
    bundle: true,
    format: "esm",
    jsxFactory: "h",
    jsxFragment: "Fragment",
    jsx: "transform",
    inject: ["labextension/stubs/jsx.mjs"],
    tsconfigRaw: {}, // the JSX of tsconfig.json is for the type checker
    alias: Object.fromEntries(STUBS.map((name) => [name, `./labextension/stubs/${name}.mjs`])),
    logLevel: "warning",
};
