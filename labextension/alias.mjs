// What of markdown-it's own packages is put aside for what a browser has: 38 KB less in every notebook; see the file itself.
const parts = "./labextension/src/card/markdown-parts.ts";

export const alias = { "linkify-it": parts, "uc.micro": parts, "punycode.js": parts, entities: parts };
