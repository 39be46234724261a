/** Printed text as a terminal would show it: colours, and of a line with carriage returns its last state. Pure, but for `paint`.
 *
 * Of the colours only what was asked for gets through: classes `ansi-…` for the sixteen, numbers for the others. All other escape sequences are dropped.
 */

export interface Span {
    text: string;
    /** Names of classes without their prefix: "bold", "red", "bg-bright-blue". */
    style: readonly string[];
    /** Colours beyond the sixteen, as CSS. */
    colour?: string;
    background?: string;
}

const NAMES = ["black", "red", "green", "yellow", "blue", "magenta", "cyan", "white"];
const ESCAPE = /\x1b\[([0-9;:?]*)([@-~])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\|$)|\x1b[@-Z\\-_]?|[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f]/g;

/** What a terminal leaves of each line: carriage returns and backspaces write over what was there.
 *
 *     collapsed("10%\r20%\ndone") === "20%\ndone", collapsed("abc\rX") === "Xbc"
 */
export function collapsed(text: string): string {
    if (!text.includes("\r") && !text.includes("\b")) return text;
    return text.split("\n").map(line).join("\n");
}

function line(text: string): string {
    const whole = text.replace(/\r+$/, "");
    if (!/[\r\b]/.test(whole)) return whole;
    if (whole.includes("\x1b")) return whole.slice(whole.lastIndexOf("\r") + 1).replaceAll("\b", ""); // colours have no width: the last state alone
    const cells: string[] = [];
    let at = 0;
    for (const letter of whole) {
        if (letter === "\r") at = 0;
        else if (letter === "\b") at = Math.max(at - 1, 0);
        else cells[at++] = letter;
    }
    return cells.join("");
}

interface Pen {
    flags: Set<string>;
    colour?: string;
    background?: string;
    fore?: string;
    back?: string;
}

/** Text with escape sequences as pieces without. Neighbours of the same style are one piece. */
export function spans(text: string): Span[] {
    const found: Span[] = [];
    const pen: Pen = { flags: new Set() };
    let at = 0;
    const add = (piece: string): void => {
        if (!piece) return;
        const style = [...pen.flags, ...(pen.fore ? [pen.fore] : []), ...(pen.back ? [`bg-${pen.back}`] : [])];
        const last = found.at(-1);
        if (last && last.style.join() === style.join() && last.colour === pen.colour && last.background === pen.background) last.text += piece;
        else found.push({ text: piece, style, ...(pen.colour && { colour: pen.colour }), ...(pen.background && { background: pen.background }) });
    };
    for (const match of text.matchAll(ESCAPE)) {
        add(text.slice(at, match.index));
        at = match.index + match[0].length;
        if (match[2] === "m") apply(pen, (match[1] ?? "").split(/[;:]/).map((code) => Number(code) || 0));
    }
    add(text.slice(at));
    return found;
}

const FLAGS: Record<number, string> = { 1: "bold", 2: "dim", 3: "italic", 4: "underline", 7: "inverse", 9: "struck" };
const OFF: Record<number, string[]> = { 22: ["bold", "dim"], 23: ["italic"], 24: ["underline"], 27: ["inverse"], 29: ["struck"] };

function apply(pen: Pen, codes: number[]): void {
    for (let i = 0; i < codes.length; i++) {
        const code = codes[i] ?? 0;
        const flag = FLAGS[code];
        if (code === 0) {
            pen.flags.clear();
            delete pen.colour, delete pen.background, delete pen.fore, delete pen.back;
        } else if (flag) pen.flags.add(flag);
        else if (OFF[code]) for (const each of OFF[code]) pen.flags.delete(each);
        else if ((code >= 30 && code <= 39) || (code >= 90 && code <= 97)) i += colour(pen, codes, i, "fore", "colour", code >= 90 ? 90 : 30);
        else if ((code >= 40 && code <= 49) || (code >= 100 && code <= 107)) i += colour(pen, codes, i, "back", "background", code >= 100 ? 100 : 40);
    }
}

/** Takes a colour in; gives how many further codes were its own. */
function colour(pen: Pen, codes: number[], at: number, named: "fore" | "back", exact: "colour" | "background", base: number): number {
    const code = (codes[at] ?? 0) - base;
    delete pen[named], delete pen[exact];
    if (code < 8) pen[named] = (base >= 90 ? "bright-" : "") + NAMES[code];
    if (code !== 8) return 0;
    if (codes[at + 1] === 5) {
        const n = codes[at + 2] ?? 0;
        if (n < 16) pen[named] = (n >= 8 ? "bright-" : "") + NAMES[n % 8];
        else pen[exact] = of256(n);
        return 2;
    }
    if (codes[at + 1] !== 2) return 0;
    const [r, g, b] = [2, 3, 4].map((i) => Math.min(codes[at + i] ?? 0, 255));
    pen[exact] = `rgb(${r},${g},${b})`;
    return 4;
}

function of256(n: number): string {
    if (n >= 232) return ((grey) => `rgb(${grey},${grey},${grey})`)(8 + (Math.min(n, 255) - 232) * 10);
    const level = (i: number): number => (i ? 55 + i * 40 : 0);
    return `rgb(${level(Math.floor((n - 16) / 36))},${level(Math.floor((n - 16) / 6) % 6)},${level((n - 16) % 6)})`;
}

/** Makes the children of an element the text, with its colours. */
export function paint(el: Element, text: string): void {
    const pieces = spans(collapsed(text)).map(({ text, style, colour, background }) => {
        if (!style.length && !colour && !background) return document.createTextNode(text);
        const span = document.createElement("span");
        span.className = style.map((name) => `ansi-${name}`).join(" ");
        if (colour) span.style.color = colour;
        if (background) span.style.background = background;
        span.textContent = text;
        return span;
    });
    el.replaceChildren(...pieces);
}
