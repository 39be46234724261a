"""The component that grows by events. Of its own, since what an event carries may be anything that a card can show (convert.py)."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from flowbook.cards import components as parts
from flowbook.cards import convert, plain
from flowbook.cards.components import Component

Json = Any


class EventsTimeline(Component):
    """Events, the latest first. The last `max_events` (at most 1,000) are kept, all are counted."""

    type = "timeline"

    def __init__(self, title: str | None = None, max_events: int = 100) -> None:
        self._events: tuple[Json, ...] = ()
        self._count = 0
        self._first: float | None = None
        self._last: float | None = None
        self._most = min(max(int(plain.number(max_events) or 1), 1), parts.EVENTS)
        self._set(title=None if title is None else plain.text(title, parts.TITLE))

    def update(
        self,
        event_data: Mapping[str, object] | None = None,
        style_theme: str | None = None,
        priority: str | None = None,
        payloads: Mapping[str, object] | None = None,
        finished: bool | None = None,
    ) -> None:
        """Add an event. `payloads` are components (or what `card.append` takes) that are shown folded below it."""
        with self._taking():
            now = time.time()
            if finished is not None:
                self._set(finished=bool(finished))
            if event_data is not None:
                shown = event_data if isinstance(event_data, Mapping) else {"event": event_data}
                event: dict[str, Json] = {
                    "at": now,
                    "data": {plain.text(k, parts.TITLE): plain.cell(v) for k, v in list(shown.items())[: parts.COLUMNS]},
                }
                event |= {"theme": style_theme} if style_theme in parts.EVENT_THEMES else {}
                event |= {"priority": priority} if priority in parts.PRIORITIES else {}
                shown_parts = {
                    plain.text(key, parts.TITLE): convert.component_of(part) for key, part in list((payloads or {}).items())[:20]
                }
                self._count += 1
                self._first, self._last = self._first or now, now
                added = {**event, "payloads": shown_parts} if shown_parts else plain.JsonText(json.dumps(event, ensure_ascii=False))
                self._events = (added, *self._events)[: self._most]

    def get_stats(self) -> dict[str, Json]:
        """How many events there were and are shown, the times of the first and the last (seconds since the epoch), events a minute."""
        last = self._last
        stats: dict[str, Json] = {
            "total_events": self._count,
            "displayed_events": len(self._events),
            "first_event": self._first,
            "last_update": last,
        }
        stats["finished"] = self._fields.get("finished", False)
        if last is not None and self._first is not None and last > self._first:
            stats["total_runtime_seconds"] = round(last - self._first, 1)
            stats["events_per_minute"] = round(self._count / (last - self._first) * 60, 1)
        return stats

    def _parts(self) -> dict[str, Json]:
        return {**self._fields, "events": self._events, "count": self._count, "first": self._first}
