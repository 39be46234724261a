"""The runs of a flow at a glance: state, times, user and tags of each, without opening one run after the other.

`index/FLOW/runs.json` has a row for every run that has ended, so it is never out of date but in what can still change: which runs
there are (one listing tells), and their tags (one listing of marks tells, see tags.py). What it lacks is read from the run itself and
entered by whoever read it; engines enter their runs as these end. It is a hint: lost or damaged, it is made again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from flowbook.errors import StoreError, StoreMissing
from flowbook.spec.flow import Spec, from_json
from flowbook.store import layout, tags
from flowbook.store.base import Store

Json = Any
VERSION = 1


@dataclass(frozen=True)
class Row:
    """One run. Times are seconds since the epoch; `state` None: it has not ended; `changes`: of its tags, that are in `tags`.

    `system` are flowbook's own tags.
    """

    state: str | None = None
    started_at: float | None = None
    ended_at: float | None = None
    user: str | None = None
    tags: tuple[str, ...] = ()
    changes: int = 0
    system: tuple[str, ...] = ()
    damaged: str = ""  # what cannot be read of it; never in the index

    @property
    def all_tags(self) -> frozenset[str]:
        return frozenset((*self.tags, *self.system))

    @property
    def final(self) -> bool:
        return self.state is not None and not self.damaged


class Glance:
    """The runs of one flow, newest first. Each iteration lists anew; rows are read only as far as it is taken."""

    def __init__(self, store: Store, flow: str) -> None:
        self.store, self.flow = store, flow
        self._rows: dict[str, Row] | None = None

    def ids(self) -> list[str]:
        """The names of all runs, newest first; one that is just being removed may be among them."""
        return sorted(self.store.names(layout.flow_prefix(self.flow).rstrip("/")), key=layout.run_order, reverse=True)

    def __iter__(self) -> Iterator[tuple[str, Row]]:
        learned: dict[str, Row] = {}
        ids, marks = self.ids(), self._marks()
        try:
            for run in ids:
                row = self._row(run, marks.get(run, 0), learned)
                if row is not None:
                    yield run, row
        finally:
            if learned:
                record(self.store, self.flow, learned, ids)

    def row(self, run: str) -> Row | None:
        """One run; None if there is none of that name."""
        return self._read(run)

    def _marks(self) -> dict[str, int]:
        """Run → how often its tags were changed, or are about to be."""
        found: dict[str, int] = {}
        for name in self.store.names(layout.tag_marks_folder(self.flow)):
            mark = tags.mark_number(name)
            if mark is not None:
                found[mark[0]] = max(found.get(mark[0], 0), mark[1] + 1)
        return found

    def _row(self, run: str, changes: int, learned: dict[str, Row]) -> Row | None:
        if self._rows is None:
            self._rows = read(self.store, self.flow)
        row = self._rows.get(run)
        if row is None:
            row = self._read(run)
        elif row.changes < changes:
            row = self._tagged(run, row)
        if row is not None and row.final and row != self._rows.get(run):
            self._rows[run] = learned[run] = row
        return row

    def _tagged(self, run: str, row: Row) -> Row | None:
        try:
            found, number = tags.read(self.store, self.flow, run, ())
            if not number:  # marked, but not changed yet: the row holds
                return row
            return replace(row, tags=found, changes=number)
        except StoreError as error:
            return replace(row, damaged=str(error))

    def _read(self, run: str) -> Row | None:
        """The row of a run from what it consists of: its spec, the end of its log, its tags."""
        try:
            key = layout.spec(self.flow, run)
            row = begun(_head(_json(self.store, key), key))
        except StoreMissing:
            return None
        except StoreError as error:
            return Row(damaged=str(error))
        try:
            end = _end(self.store, self.flow, run)
            found, changes = tags.read(self.store, self.flow, run, row.tags)
            row = replace(row, tags=found, changes=changes)
            return row if end is None else replace(row, state=str(end["state"]), ended_at=_number(end.get("at")))
        except (StoreError, KeyError) as error:
            return replace(row, damaged=str(error))


SYSTEM = ("user", "python_version", "flowbook_version", "origin", "date", "project", "project_branch")  # the tags of flowbook


def begun(spec: Spec) -> Row:
    """The row of a run that was just started."""
    return Row(None, spec.started_at, None, spec.user, spec.tags, 0, system_tags(spec))


def system_tags(spec: Spec) -> tuple[str, ...]:
    """``user:ann``, ``python_version:3.11.7``, ``date:2026-11-25`` (of its start, in UTC), …, as far as known."""
    day = time.strftime("%Y-%m-%d", time.gmtime(spec.started_at)) if spec.started_at is not None else None
    project = (spec.project.get("project_name"), spec.project.get("branch_name"))
    values = (spec.user, spec.python, getattr(spec, "flowbook", None), spec.origin, day, *project)
    return tuple(f"{word}:{value}" for word, value in zip(SYSTEM, values, strict=True) if value)


_READ = ("started_at", "user", "tags", "python", "flowbook", "origin", "project")


def _head(data: Mapping[str, Json], key: str) -> Spec:
    """A spec without its steps. Raises StoreError."""
    try:
        found = from_json(Spec, {"flow": "", "run": "", "steps": [], **{name: data[name] for name in _READ if name in data}})
        assert isinstance(found, Spec)
        return replace(found, started_at=_number(found.started_at), tags=tuple(map(str, found.tags)))
    except (TypeError, ValueError, AttributeError):
        raise StoreError(f"{key} is damaged: it does not hold the spec of a run") from None


def read(store: Store, flow: str) -> dict[str, Row]:
    """The rows of the index; none if it is not there or damaged."""
    try:
        data = json.loads(store.get(layout.glance(flow)))
        if data["v"] != VERSION:
            return {}
        return {str(run): _from_json(row) for run, row in data["runs"].items()}
    except (StoreError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def record(store: Store, flow: str, rows: Mapping[str, Row], ids: Iterable[str] | None = None) -> None:
    """Enter rows. With `ids`, the runs that there are, others are left out. What another process enters at the same moment may be lost,
    and is then read from its run again; so may everything, if the store cannot be written."""
    known = read(store, flow) | {run: row for run, row in rows.items() if row.final}
    kept = known if ids is None else {run: known[run] for run in ids if run in known}
    text = json.dumps({"v": VERSION, "runs": {run: _to_json(row) for run, row in kept.items()}}, separators=(",", ":"))
    try:
        store.put(layout.glance(flow), text.encode())
    except StoreError:
        pass  # read-only, or full: the runs themselves say the same


def forget(store: Store, flow: str, runs: Iterable[str]) -> None:
    """Take removed runs out of the index."""
    gone = set(runs)
    known = read(store, flow)
    if gone & set(known):
        record(store, flow, {}, [run for run in known if run not in gone])
    tags.forget_marks(store, flow, gone)


def _to_json(row: Row) -> list[Json]:
    return [row.state, row.started_at, row.ended_at, row.user, list(row.tags), row.changes, list(row.system)]


def _from_json(data: Json) -> Row:
    state, started_at, ended_at, user, given, changes, system = data
    return Row(str(state), _number(started_at), _number(ended_at), user, tuple(map(str, given)), int(changes), tuple(map(str, system)))


def _end(store: Store, flow: str, run: str) -> Mapping[str, Json] | None:
    """The event with which a run ended: it stands in the last object of its log."""
    key = max(store.list(layout.log_prefix(flow, run)), default=None)
    if key is None:
        return None
    events = _json(store, key).get("events")
    if not isinstance(events, list) or not all(isinstance(event, dict) for event in events):
        raise StoreError(f"{key} is damaged: it does not hold the events of a run")
    return next((event for event in reversed(events) if event.get("e") == "run_ended"), None)


def _json(store: Store, key: str) -> dict[str, Json]:
    try:
        found = json.loads(store.get(key))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise StoreError(f"{key} is damaged: it is not a JSON object")
    return found


def _number(value: Json) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
