// How the sources become plain JavaScript, the same for what is built and for what is tested.
const STUBS = ["entities", "linkify-it", "mdurl", "punycode.js", "uc.micro"]; // stubs/README.md says why

export const BUNDLE = {
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
