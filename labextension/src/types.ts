/** What the kernel sends and the panel draws: the traits of flowbook/kernel/panel_data.py, word by word.
 *
 * A test (tests/test_panel_data.py) reads this file and compares every interface with the Python side. Times are seconds since
 * the epoch by the clock of the engine, durations seconds, sizes bytes, memory MB of 10**6 bytes. Nothing here is trusted: all text comes from runs.
 */

export type Json = null | boolean | number | string | Json[] | { [name: string]: Json };

/** A card as flowbook/cards/wire.py reads it; its components are checked field by field where they are drawn. */
export interface CardJson {
    v: number;
    id: string;
    type: string;
    state: "running" | "succeeded" | "failed";
    n: number;
    at?: number;
    place?: { flow?: string; run?: string; step?: string; index?: number[]; attempt?: number };
    components: Component[];
    left_out?: number;
}

export interface Component {
    type: string;
    id?: string;
    [field: string]: Json | undefined;
}
