/** The table of a fan-out, and any two of its numbers against each other. */
import { useEffect, useRef, useState } from "preact/hooks";
import type { Cell, Column, Table } from "../types";
import { aligned, kind, number, plain, seconds, word } from "./format";
import { Icon } from "./Icon";
import { axes, scale, sorted, timed, type Order, type Scale } from "./pick";
import { useWidth } from "./width";

interface Props {
    step: string;
    table: Table;
    /** It has no items, and will have none. */
    empty: boolean;
    now: number;
    chosen: string | null;
    choose: (task: string) => void;
    order: Order | null;
    setOrder: (order: Order | null) => void;
}

export function Sweep({ step, table, empty, now, chosen, choose, order, setOrder }: Props) {
    const rows = sorted(timed(table, now), order);
    const texts = table.columns.map((column, i) => (column.kind === "task" || column.kind === "state" || column.kind === "time" ? [] : aligned(rows.map((row) => row[i] ?? null))));
    const left = table.total - table.rows.length;
    const box = useRef<HTMLDivElement>(null);
    useEffect(() => { // the task that was chosen elsewhere is in sight; the page stays where it is
        const row = box.current?.querySelector<HTMLElement>("[aria-selected=true]");
        if (row && box.current) box.current.scrollTop = Math.max(row.offsetTop - box.current.clientHeight / 2, 0);
    }, [step]);
    const press = (event: KeyboardEvent): void => {
        const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
        if (!by) return;
        const buttons = [...(event.currentTarget as HTMLElement).querySelectorAll<HTMLElement>("tbody button")];
        const next = buttons[buttons.indexOf(document.activeElement as HTMLElement) + by];
        if (!next) return;
        event.preventDefault();
        event.stopPropagation();
        next.focus();
    };
    if (!rows.length) return <p class="fbp-none">{empty ? `${step} has no items: its --foreach gave none` : `the items of ${step} are not known yet`}</p>;
    return (
        <div class="fbp-sweep">
            <div class="fbp-scroll" ref={box}>
                <table onKeyDown={press} aria-label={`tasks of ${step}`}>
                    <thead><tr>{table.columns.map((column, i) => <Title key={`${column.kind} ${column.name}`} column={column} at={i} order={order} setOrder={setOrder} />)}</tr></thead>
                    <tbody>
                        {rows.map((row, at) => (
                            <tr key={String(row[0])} aria-selected={row[0] === chosen} onClick={() => choose(String(row[0]))}>
                                {row.map((value, i) => <Field column={table.columns[i]!} value={value} text={texts[i]![at] ?? ""} step={step} chosen={row[0] === chosen} />)}
                            </tr>
                        ))}
                    </tbody>
                </table>
            </div>
            {left > 0 && <p class="fbp-dim">{table.rows.length} of {table.total.toLocaleString("en")} tasks: failed, running, newest. All: <code>{step}.table()</code></p>}
            <Scatter step={step} columns={table.columns} rows={rows} chosen={chosen} choose={choose} />
        </div>
    );
}

function Title({ column, at, order, setOrder }: { column: Column; at: number; order: Order | null; setOrder: (order: Order | null) => void }) {
    const own = order?.column === at ? order : null;
    const next = (): void => setOrder(own ? (own.down ? null : { column: at, down: true }) : { column: at, down: false });
    const kind = column.kind === "metric" ? "the last value of this metric" : column.kind === "artifact" ? "an artifact" : column.kind === "item" ? "of the item" : "";
    return (
        <th class={column.numeric ? "fbp-number" : ""} scope="col" aria-sort={own ? (own.down ? "descending" : "ascending") : "none"}>
            <button type="button" onClick={next} title={kind}>
                {plain(column.name)}<span class="fbp-sort" aria-hidden="true">{own ? (own.down ? "▾" : "▴") : ""}</span>
            </button>
        </th>
    );
}

function Field({ column, value, text, step, chosen }: { column: Column; value: Cell; text: string; step: string; chosen: boolean }) {
    if (column.kind === "task") {
        const name = String(value);
        return <td><button type="button" class="fbp-link" aria-label={name} aria-pressed={chosen}>{name.startsWith(`${step}[`) ? name.slice(step.length) : name}</button></td>;
    }
    if (column.kind === "state") return <td class="fbp-state"><Icon state={String(value)} label={false} />{word(String(value))}</td>;
    if (column.kind === "time") return <td class="fbp-number">{typeof value === "number" ? seconds(value) : ""}</td>;
    return <td class={column.numeric ? "fbp-number" : "fbp-text"} title={value === null ? undefined : plain(String(value))}>{text}</td>;
}

// ---- two numbers against each other --------------------------------------------------------------------------------

const HEIGHT = 170, LEFT = 46, BOTTOM = 20, TOP = 8, RIGHT = 12;

function Scatter({ step, columns, rows, chosen, choose }: { step: string; columns: Column[]; rows: Cell[][]; chosen: string | null; choose: (task: string) => void }) {
    const [picked, pick] = useState<{ x?: string; y?: string }>({});
    const box = useRef<HTMLDivElement>(null);
    const width = useWidth(box);
    const start = axes(columns);
    if (!start || rows.length < 2) return null;
    const at = (name: string | undefined, otherwise: number): number => {
        const found = columns.findIndex((column) => column.numeric && column.name === name);
        return found < 0 ? otherwise : found;
    };
    const [x, y] = [at(picked.x, start[0]), at(picked.y, start[1])];
    const state = columns.findIndex((column) => column.kind === "state");
    const points = rows.flatMap((row) => {
        const [a, b] = [row[x], row[y]];
        return typeof a === "number" && typeof b === "number" ? [{ id: String(row[0]), x: a, y: b, state: String(row[state] ?? "") }] : [];
    });
    const [across, up] = [scale(points.map((point) => point.x)), scale(points.map((point) => point.y))];
    return (
        <figure class="fbp-scatter" ref={box}>
            <figcaption>
                <Axis label="vertical axis" columns={columns} value={y} choose={(name) => pick({ ...picked, y: name })} /> against{" "}
                <Axis label="horizontal axis" columns={columns} value={x} choose={(name) => pick({ ...picked, x: name })} />
                {(across.log || up.log) && <span class="fbp-dim"> logarithmic: {[across.log && columns[x]!.name, up.log && columns[y]!.name].filter(Boolean).join(", ")}</span>}
            </figcaption>
            <svg width={width} height={HEIGHT} role="img" aria-label={`${columns[y]!.name} against ${columns[x]!.name} of ${points.length} tasks of ${step}`}>
                <Grid across={across} up={up} width={width} />
                {points.map((point) => {
                    const [cx, cy] = [LEFT + across.place(point.x) * (width - LEFT - RIGHT), HEIGHT - BOTTOM - up.place(point.y) * (HEIGHT - BOTTOM - TOP)];
                    return (
                        <g key={point.id} class={`fbp-point fbp-is-${kind(point.state)}${point.id === chosen ? " fbp-chosen" : ""}`} transform={`translate(${cx.toFixed(1)} ${cy.toFixed(1)})`} onClick={() => choose(point.id)}>
                            <title>{`${point.id}\n${columns[x]!.name} ${number(point.x)}\n${columns[y]!.name} ${number(point.y)}`}</title>
                            <circle class="fbp-halo" r="9" />
                            {point.state === "failed" ? <path d="M-3.5-3.5l7 7M3.5-3.5l-7 7" /> : <circle r={points.length > 60 ? 3 : 4} />}
                        </g>
                    );
                })}
            </svg>
        </figure>
    );
}

function Grid({ across, up, width }: { across: Scale; up: Scale; width: number }) {
    const bottom = HEIGHT - BOTTOM;
    return (
        <g class="fbp-grid" aria-hidden="true">
            {up.ticks.map((tick) => {
                const y = bottom - up.place(tick) * (bottom - TOP);
                return <><path d={`M${LEFT} ${y.toFixed(1)}H${width - RIGHT}`} /><text x={LEFT - 6} y={y + 3.5} text-anchor="end">{number(tick)}</text></>;
            })}
            {across.ticks.map((tick) => {
                const x = LEFT + across.place(tick) * (width - LEFT - RIGHT);
                return <><path d={`M${x.toFixed(1)} ${bottom}v3`} /><text x={x} y={HEIGHT - 5} text-anchor="middle">{number(tick)}</text></>;
            })}
            <path d={`M${LEFT} ${bottom}H${width - RIGHT}`} />
        </g>
    );
}

function Axis({ label, columns, value, choose }: { label: string; columns: Column[]; value: number; choose: (name: string) => void }) {
    return (
        <select aria-label={label} value={columns[value]?.name} onChange={(event) => choose(event.currentTarget.value)}>
            {columns.filter((column) => column.numeric).map((column) => <option key={column.name} value={column.name}>{plain(column.name)}</option>)}
        </select>
    );
}
