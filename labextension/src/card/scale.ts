/** The arithmetic of our own line charts: scales, round ticks, paths. Pure. */

export interface Line {
    name: string;
    x: number[];
    y: (number | null)[];
    count: number;
}

export interface Scale {
    low: number;
    high: number;
    /** Pixels of `low` and `high`. */
    start: number;
    stop: number;
}

export const place = (scale: Scale, value: number): number =>
    scale.start + ((value - scale.low) / (scale.high - scale.low)) * (scale.stop - scale.start);

export const value = (scale: Scale, at: number): number => scale.low + ((at - scale.start) / (scale.stop - scale.start)) * (scale.high - scale.low);

/** A scale that holds all values; null where they are too far apart for numbers, or none. */
export function scale(values: Iterable<number>, start: number, stop: number, margin = 0): Scale | null {
    let low = Number.POSITIVE_INFINITY;
    let high = Number.NEGATIVE_INFINITY;
    for (const each of values) {
        if (each < low) low = each;
        if (each > high) high = each;
    }
    if (high < low) return null;
    const wide = high > low ? (high - low) * margin : Math.abs(low) / 10 || 1;
    const found = { low: low - wide, high: high + wide, start, stop };
    return Number.isFinite(found.high - found.low) && found.high > found.low ? found : null;
}

/** Round numbers between two, about `most` of them.
 *
 *     ticks(0, 1, 5) is [0, 0.2, 0.4, 0.6, 0.8, 1]
 */
export function ticks(low: number, high: number, most: number): number[] {
    if (!(high > low) || !Number.isFinite(high - low)) return [];
    const rough = 10 ** Math.floor(Math.log10((high - low) / most));
    const step = rough * ([1, 2, 5, 10].find((factor) => (high - low) / (rough * factor) <= most) ?? 10);
    const first = Math.ceil(low / step);
    const found: number[] = [];
    for (let n = first; n * step <= high + step * 1e-9 && found.length < most + 2; n++) found.push(Number((n * step).toPrecision(12)));
    return found;
}

/** The `d` of a path through the points; gaps lift the pen. A point between two gaps is drawn as a dot by the round ends of the line. */
export function path(line: Line, x: Scale, y: Scale): string {
    const found: string[] = [];
    let down = false;
    line.x.forEach((at, i) => {
        const up = line.y[i];
        if (up === null || up === undefined) {
            down = false;
            return;
        }
        const alone = !down && (line.y[i + 1] ?? null) === null;
        found.push(`${down ? "L" : "M"}${place(x, at).toFixed(1)},${place(y, up).toFixed(1)}${alone ? "h0" : ""}`);
        down = true;
    });
    return found.join("");
}

/** The place of the point that is nearest to an x, among points that may be in any order; null if there is none. */
export function nearest(line: Line, x: number): number | null {
    let best: number | null = null;
    line.x.forEach((at, i) => {
        if (line.y[i] !== null && (best === null || Math.abs(at - x) < Math.abs((line.x[best] as number) - x))) best = i;
    });
    return best;
}

/** The last number of a line; null if there is none. */
export function latest(line: Line): number | null {
    for (let i = line.y.length - 1; i >= 0; i--) {
        const found = line.y[i];
        if (found !== null && found !== undefined) return found;
    }
    return null;
}

/** A number on an axis: as short as it can be. */
export function label(value: number): string {
    const size = Math.abs(value);
    if (value !== 0 && (size >= 1e6 || size < 1e-4)) return value.toExponential(1).replace(".0e", "e").replace("e+", "e");
    return Number(value.toPrecision(6)).toLocaleString("en-US", { maximumFractionDigits: 6 });
}
