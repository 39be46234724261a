"""The engine process: ``python -P -m flowbook.engine --socket PATH --store JSON [--notebook PATH] [--capacity JSON]``.

The folder of the socket is the engine's own. ``--notebook`` is told to those who look for an engine (registry.py).

``--store`` is what the store says of itself (`Store.describe`); ``--capacity`` ``{"cores": 4, "memory_mb": 16000, "gpus": 1}``
takes the place of what is found on this machine. Exit codes: 0 nobody needs the engine any more, 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from flowbook._version import __version__
from flowbook.engine import registry
from flowbook.engine.admission import Capacity
from flowbook.engine.scheduler import Machine
from flowbook.engine.server import Server, listen_to_signals
from flowbook.errors import FlowbookError, StoreError
from flowbook.store.base import Store, open_store


async def serve(store: Store, path: Path, capacity: Capacity | None, notebook: str = "") -> None:
    machine = Machine(capacity=capacity, folder=path.parent)
    server = Server(store, machine)
    listen_to_signals(server)
    entry = registry.Entry(os.getpid(), str(path), str(path.parent), __version__, sys.executable, notebook, time.time())
    entered = None
    with contextlib.suppress(OSError, StoreError):  # a store that cannot be written says so when a run wants to
        entered = registry.enter(store, entry)
    try:
        await server.serve(path)
    finally:
        if entered is not None:
            entered.unlink(missing_ok=True)
    leave(path.parent)


def leave(folder: Path) -> None:
    """Remove what this engine wrote into its folder, and the folder if nothing else is there. After a crash it stays, to be read."""
    for scratch in folder.glob("scratch-*"):
        shutil.rmtree(scratch, ignore_errors=True)
    with contextlib.suppress(OSError):
        for name in ("engine.log", "fork.log"):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def read_capacity(text: str) -> Capacity:
    """The value of --capacity. Raises ValueError for anything but positive numbers."""
    data = json.loads(text)
    if not isinstance(data, dict) or not data.keys() <= {"cores", "memory_mb", "gpus"}:
        raise ValueError('expected {"cores": 4, "memory_mb": 16000, "gpus": 1}')
    numbers: dict[str, Any] = {"cores": float(os.cpu_count() or 1), **data}
    if not all(type(value) in (int, float) and value >= 0 for value in numbers.values()) or not numbers["cores"]:
        raise ValueError("cores, memory_mb (MB of 10**6 bytes) and gpus are numbers, cores above 0")
    return Capacity(float(numbers["cores"]), numbers.get("memory_mb"), int(numbers.get("gpus", 0)))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -P -m flowbook.engine", description="The engine of one kernel.")
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--store", required=True)
    parser.add_argument("--notebook", default="")
    parser.add_argument("--capacity")
    given = parser.parse_args(arguments)
    try:
        description = json.loads(given.store)
        if not isinstance(description, dict):
            raise ValueError("a JSON object is expected")
        store = open_store(description)
    except (ValueError, FlowbookError) as error:
        parser.error(f"--store: {error}")
    try:
        capacity = read_capacity(given.capacity) if given.capacity else None
    except ValueError as error:
        parser.error(f"--capacity: {error}")
    asyncio.run(serve(store, given.socket, capacity, given.notebook))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
