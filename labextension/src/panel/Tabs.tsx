/** Tabs as a keyboard and a screen reader know them: arrow keys move, the content of the chosen one follows. */
import type { ComponentChildren } from "preact";
import { useRef } from "preact/hooks";

export interface Tab {
    id: string;
    label: ComponentChildren;
    content: () => ComponentChildren;
}

let made = 0;

export function Tabs({ tabs, chosen, choose, label, aside }: { tabs: Tab[]; chosen: string; choose: (id: string) => void; label: string; aside?: ComponentChildren }) {
    const list = useRef<HTMLDivElement>(null);
    const name = useRef("");
    name.current ||= `fbp-tabs-${(made += 1)}`;
    const place = Math.max(tabs.findIndex((tab) => tab.id === chosen), 0);
    const shown = tabs[place];
    const go = (event: KeyboardEvent): void => {
        const by = { ArrowRight: 1, ArrowLeft: -1, Home: -place, End: tabs.length - 1 - place }[event.key];
        if (by === undefined) return;
        event.preventDefault();
        event.stopPropagation();
        const next = (place + by + tabs.length) % tabs.length;
        choose(tabs[next]!.id);
        list.current?.querySelectorAll<HTMLElement>("[role=tab]")[next]?.focus();
    };
    return (
        <section class="fbp-tabs">
            <div class="fbp-tabline">
                <div role="tablist" aria-label={label} ref={list} onKeyDown={go}>
                    {tabs.map((tab, i) => (
                        <button
                            type="button" role="tab" key={tab.id} id={`${name.current}-${i}`} aria-controls={`${name.current}-body`}
                            aria-selected={i === place} tabIndex={i === place ? 0 : -1} onClick={() => choose(tab.id)}
                        >
                            {tab.label}
                        </button>
                    ))}
                </div>
                {aside}
            </div>
            <div role="tabpanel" id={`${name.current}-body`} aria-labelledby={`${name.current}-${place}`} class="fbp-tabbody" key={shown?.id}>
                {shown?.content()}
            </div>
        </section>
    );
}
