// How the sources become plain JavaScript, the same for what is built and for what is tested.
import { readFile } from "node:fs/promises";

const STUBS = ["entities", "linkify-it", "mdurl", "punycode.js", "uc.micro"]; // stubs/README.md says why

// What of markdown-it is never used here and would stay in the bundle, since a list names it: rules that CommonMark does not have or that are for HTML,
// which is off, and a preset. Each with how often it stands there.
const UNUSED = [
    [/^\t\["(?:linkify|replacements|smartquotes|html_inline)", \w+(?:\$1)?\],?\n/gm, 5],
    [/^\t\[\n\t\t"html_block",\n\t\thtml_block,\n\t\t\[[^\]]*\]\n\t\],\n/gm, 1],
    [/^\t+"html_(?:block|inline)",\n/gm, 2],
    [/^\tzero: \{\n[\s\S]*?^\t\},\n/gm, 1],
];

const lean = {
    name: "lean markdown-it",
    setup(build) {
        build.onLoad({ filter: /markdown-it[\\/]dist[\\/]markdown-it\.mjs$/ }, async ({ path }) => {
            let contents = await readFile(path, "utf8");
            for (const [part, count] of UNUSED) {
                const found = contents.match(part)?.length ?? 0;
                if (found !== count) throw new Error(`markdown-it has changed: ${found} of ${count} parts that are left out were found (${part})`);
                contents = contents.replace(part, "");
            }
            return { contents };
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
