"""The engine process: ``python -P -m flowbook.engine --socket PATH --store JSON [--capacity JSON]``.

``--store`` is what the store says of itself (`Store.describe`); ``--capacity`` ``{"cores": 4, "memory_mb": 16000, "gpus": 1}``
takes the place of what is found on this machine. Exit codes: 0 nobody needs the engine any more, 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from flowbook.engine.admission import Capacity
from flowbook.engine.scheduler import Machine
from flowbook.engine.server import Server, listen_to_signals
from flowbook.errors import FlowbookError
from flowbook.store.base import Store, open_store


async def serve(store: Store, path: Path, capacity: Capacity | None) -> None:
    server = Server(store, Machine(capacity=capacity))
    listen_to_signals(server)
    await server.serve(path)


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
    asyncio.run(serve(store, given.socket, capacity))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
