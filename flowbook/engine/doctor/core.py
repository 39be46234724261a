"""A finding, a check, and how checks are made: one after the other, each with a deadline. Knows nothing of what is checked."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from flowbook.errors import StoreError

LIMIT_S = 20.0  # of a check that names no other; what it asks has shorter ones, so that it says itself who did not answer
MARK = {"ok": "✓", "warn": "!", "bad": "✗"}


@dataclass(frozen=True)
class Found:
    """What a check says. `state` is ok, warn or bad; `paste`: YAML or a command as it can be copied; `part` is that of its check."""

    state: str
    text: str
    remedy: str = ""
    paste: str = ""
    part: str = ""

    def __str__(self) -> str:
        told = f"{MARK[self.state]} {self.text}" + (f". {self.remedy}" if self.remedy else "")
        return f"{told}\n\n{self.paste}" if self.paste else told

    def to_json(self) -> dict[str, str]:
        """Without what is empty."""
        return {name: value for name, value in asdict(self).items() if value}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Found:
        return cls(**{name: str(data.get(name, "")) for name in ("state", "text", "remedy", "paste", "part")})


@dataclass(frozen=True)
class Check:
    """One check. `part`: here, store, cluster, …; `what` it looks at, in words; `act` gives what it finds, as it finds it.

    `gate`: if it finds something bad, the rest of its part is left out. `limit_s` None: it ends by itself, and may be interrupted.
    """

    part: str
    what: str
    act: Callable[[], Iterable[Found]]
    limit_s: float | None = LIMIT_S
    gate: bool = False


def examine(checks: Iterable[Check]) -> Iterator[Found]:
    """What all checks say, as they say it. Never raises, but for an interrupt."""
    closed: set[str] = set()
    for check in checks:
        if check.part in closed:
            continue
        wrong = False
        for found in _made(check, closed):
            wrong |= found.state == "bad"
            yield Found(found.state, found.text, found.remedy, found.paste, found.part or check.part)
        if wrong and check.gate:
            closed.add(check.part)


def summary(found: Iterable[Found], seconds: float) -> str:
    """``12 checks in 1.3 s, all is well``."""
    states = [each.state for each in found]
    wrong = sum(state != "ok" for state in states)
    return f"{len(states)} checks in {seconds:.1f} s, " + (f"{wrong} to look at" if wrong else "all is well")


def _made(check: Check, closed: set[str]) -> Iterator[Found]:
    try:
        yield from check.act() if check.limit_s is None else _in_time(check, check.limit_s)
    except Exception as error:
        if isinstance(error, StoreError) and "store" in closed:
            return  # told already
        yield Found("bad", f"{check.what}: the check failed: {type(error).__name__}: {error}")


def _in_time(check: Check, limit_s: float) -> Iterator[Found]:
    """In a thread, which is left alone when time is up: it may hang where nothing can end it."""
    heard: queue.SimpleQueue[Found | BaseException | None] = queue.SimpleQueue()

    def act() -> None:
        try:
            for found in check.act():
                heard.put(found)
            heard.put(None)
        except BaseException as error:
            heard.put(error)

    threading.Thread(target=act, name="flowbook-doctor", daemon=True).start()
    until = time.monotonic() + limit_s
    while True:
        try:
            found = heard.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            remedy = "The rest of this check was left out. Is what it asks reachable from here (network, proxy, VPN)?"
            yield Found("bad", f"{check.what}: no answer within {limit_s:.0f} s", remedy)
            return
        if found is None:
            return
        if isinstance(found, BaseException):
            raise found
        yield found
