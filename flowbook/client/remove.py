"""Taking one run out of the store while others run.

A run that is open is never removed under its engine. `run.json` goes first, so whatever happens then, half a run is never listed, and
garbage collection takes away what is left. Blobs stay until it finds that nothing refers to them. Of the newest run a mark stays
behind (`run.deleted`): the next run must not get its number, since engines and notebooks know results by the numbers of runs.
"""

from __future__ import annotations

import json
import socket
from typing import Any

from flowbook.client import record
from flowbook.client.place import NotFound, RunBusy
from flowbook.engine import registry
from flowbook.errors import StoreError, StoreMissing
from flowbook.store import garbage, glance, layout
from flowbook.store.base import Store

Json = Any


def remove_run(store: Store, flow: str, run: str, *, force: bool = False) -> None:
    """Raises NotFound, RunBusy (see `Run.delete`), StoreError if the store cannot be written."""
    _check_free(store, flow, run, force)
    others = [int(name) for name in store.names(layout.flow_prefix(flow).rstrip("/")) if name.isdigit() and name != run]
    newest = run.isdigit() and int(run) > max(others, default=0)
    if newest:
        store.create(layout.deleted(flow, run), b"")
    store.delete(layout.spec(flow, run))
    glance.forget(store, flow, [run])
    record.forget(store, flow, run)
    if not newest:
        store.delete_folder(layout.run_prefix(flow, run).rstrip("/"))
    for key in list(store.list(layout.run_prefix(flow, run))):
        if key != layout.deleted(flow, run):
            store.delete(key)


def _check_free(store: Store, flow: str, run: str, force: bool) -> None:
    name = f"run {run} of {flow}"
    if not store.exists(layout.spec(flow, run)):
        raise NotFound(f"there is no {name}; it may have been removed already")
    try:
        is_open = garbage.is_open(store, flow, run)
    except StoreError:
        is_open = False  # a damaged log; no engine goes on with it
    if is_open:
        if _driven(store, flow, run):
            raise RunBusy(f"{name} is running. Stop it first (`%flow stop`, or Ctrl-C where it was started), then delete it.")
        if not force:
            raise RunBusy(
                f"{name} has not ended. If it runs nowhere any more, because its engine was killed, delete(force=True) removes it."
            )
    if not force and (others := _takers(store, flow, run)):
        raise RunBusy(f"{name} is kept: run {', '.join(others[:5])} took results from it. delete(force=True) removes it all the same.")


def _takers(store: Store, flow: str, run: str) -> list[str]:
    """The other runs that took results of this one, or may still."""
    found = []
    for other in garbage.run_ids(store, flow):
        try:
            if other != run and run in garbage.origins(store, flow, other):
                found.append(other)
        except StoreMissing:
            continue  # removed meanwhile
        except StoreError:
            found.append(f"{other} (damaged, so it may have)")
    return found


def _driven(store: Store, flow: str, run: str) -> bool:
    """Whether a living engine of this machine says that the run is its own."""
    try:
        engines = [entry for _, entry in registry.entries(store)]
    except (OSError, StoreError):
        return False
    return any([flow, run] in _runs_of(entry.socket) for entry in engines)


def _runs_of(path: str) -> list[Json]:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as talk:
            talk.settimeout(2.0)
            talk.connect(path)
            talk.sendall(b'{"do": "ping"}\n')
            with talk.makefile("rb") as lines:
                for line in lines:
                    answer = json.loads(line)
                    if answer.get("say") == "pong":
                        return list(answer.get("runs", ()))
    except (OSError, ValueError, AttributeError):
        pass  # it is gone
    return []
