"""The log of a run, read in few requests.

The log is objects that were created one after the other, and they alone decide. In a store where each object is a request, all of
them so far also stand in one, `run.log.json`: the engine writes it when they have become twice as many, and at the run's end. It
can always be made again, so readers need not find it, nor believe more of it than that it is a beginning of the log.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from flowbook.errors import StoreError
from flowbook.store import layout
from flowbook.store.base import Store

Json = Any
VERSION = 1
FEW = 3  # so many objects are read as they are
THREADS = 8


def due(store: Store, count: int, written: int) -> bool:
    """Whether the log has grown enough since its first `written` objects were put together."""
    return not store.mapped and count > FEW and count >= 2 * written


def write(store: Store, flow: str, run: str, packed: Sequence[bytes]) -> None:
    """Put the log together; `packed` is the list of events of each object, as JSON. Raises StoreError."""
    store.put(layout.log_index(flow, run), [b'{"v":%d,"batches":[' % VERSION, b",\n".join(packed), b"]}"])


def read(store: Store, flow: str, run: str, after: str = "") -> Iterator[tuple[str, list[dict[str, Json]]]]:
    """(key, events) of each object of the log behind `after`, in order. Raises StoreError, naming the key, for a damaged one."""
    known = [] if store.mapped or after else _together(store, flow, run)
    for number, events in enumerate(known):
        yield layout.log(flow, run, number), events
    if known and any(event["e"] == "run_ended" for event in known[-1]):
        return
    after = layout.log(flow, run, len(known) - 1) if known else after
    keys = [key for key in store.list(layout.log_prefix(flow, run)) if key > after]
    if store.mapped or len(keys) <= 1:
        yield from ((key, checked(store.get(key), key)) for key in keys)
        return
    with ThreadPoolExecutor(THREADS, "flowbook-log") as pool:
        yield from ((key, checked(data, key)) for key, data in zip(keys, pool.map(store.get, keys), strict=True))


def _together(store: Store, flow: str, run: str) -> list[list[dict[str, Json]]]:
    try:
        data = json.loads(store.get(layout.log_index(flow, run)))
        found: list[list[dict[str, Json]]] = data["batches"] if data["v"] == VERSION else []
        return found if all(_is_batch(batch) for batch in found) else []
    except (StoreError, ValueError, TypeError, KeyError):
        return []  # not there, or damaged: the log itself says the same


def checked(data: bytes, key: str) -> list[dict[str, Json]]:
    """The events of an object of a log. Raises StoreError, naming the key, for anything else."""
    try:
        found = json.loads(data)["events"]
    except (ValueError, KeyError, TypeError):
        found = None
    if not _is_batch(found):
        raise StoreError(f"{key} is damaged: it does not hold the events of a run. The results of the run are whole; start a new run.")
    assert isinstance(found, list)
    return found


def _is_batch(found: Json) -> bool:
    return isinstance(found, list) and all(isinstance(event, dict) and isinstance(event.get("e"), str) for event in found)
