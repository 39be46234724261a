/** The size of a place, pixels, also when it changes. */
import { useLayoutEffect, useState } from "preact/hooks";

export function useWidth(box: { current: HTMLElement | null }, otherwise = 320): number {
    const [width, set] = useState(otherwise);
    const el = box.current;
    useLayoutEffect(() => {
        const place = box.current;
        if (!place) return;
        const watch = new ResizeObserver(([entry]) => entry && entry.contentRect.width && set(Math.floor(entry.contentRect.width)));
        watch.observe(place);
        return () => watch.disconnect();
    }, [el]);
    return width;
}

/** Keeps a place as high as it has been while `on`, so that what stands below does not jump as tasks come and go; anew for another `of`. */
export function useHeldHeight(box: { current: HTMLElement | null }, on: boolean, of: string): void {
    useLayoutEffect(() => {
        const place = box.current;
        if (!place || !on) return;
        let [highest, width] = [0, 0];
        const watch = new ResizeObserver(() => {
            if (place.clientWidth !== width) { // the lines break elsewhere
                [highest, width] = [0, place.clientWidth];
                place.style.minHeight = "";
            }
            highest = Math.max(highest, place.clientHeight);
            place.style.minHeight = `${highest}px`;
        });
        watch.observe(place);
        return () => {
            watch.disconnect();
            place.style.minHeight = "";
        };
    }, [on, of]);
}
