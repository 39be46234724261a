"""Times and states as people give them to filters, and as they are shown: datetimes of the local time zone without one."""

from __future__ import annotations

import difflib
from datetime import date, datetime, timedelta

from flowbook.errors import DefinitionError, Finding

When = datetime | date | timedelta | float | str
STATES = ("running", "succeeded", "failed", "stopped")


def local(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds)


def seconds(when: When | None, word: str) -> float | None:
    """Seconds since the epoch. Raises DefinitionError."""
    if when is None:
        return None
    try:
        if isinstance(when, str):
            when = datetime.fromisoformat(when)
        if isinstance(when, timedelta):
            return (datetime.now() - abs(when)).timestamp()
        if isinstance(when, date):
            return (when if isinstance(when, datetime) else datetime(when.year, when.month, when.day)).timestamp()
        if isinstance(when, int | float) and not isinstance(when, bool) and when == when:
            return float(when)
    except (ValueError, OverflowError, OSError):
        pass
    raise DefinitionError(
        Finding(
            f"runs({word}=…)",
            f"{when!r} is no time",
            'Give a datetime, a date, "2026-11-25", "2026-11-25 13:00", seconds since the epoch, or timedelta(hours=3) for three hours ago.',
        )
    )


def check_state(state: str | None) -> None:
    if state is not None and state not in STATES:
        near = difflib.get_close_matches(str(state), STATES, 1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise DefinitionError(Finding("runs(state=…)", f"there is no state {state!r}", f"{hint}States are: {', '.join(STATES)}."))
