"""The engine processes of this machine, as files: a new kernel finds here the engine that its notebook had before.

An entry says where an engine listens; whether it lives, only its socket can say. Killed engines leave their entries behind.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from flowbook.store.base import Store

FOLDER = "engines"  # in Store.local_dir()


@dataclass(frozen=True)
class Entry:
    """One engine. `folder` holds its socket, its log and the scratch folders of its tasks."""

    pid: int
    socket: str
    folder: str
    version: str
    python: str
    notebook: str = ""
    started_at: float = 0.0  # seconds since the epoch, for people

    def lives(self) -> bool:
        """Whether somebody answers at its socket."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(self.socket)
            except OSError:
                return False
        return True


def enter(store: Store, entry: Entry) -> Path:
    """Write the entry of this process; gives the file, which is removed when the engine ends."""
    folder = store.local_dir() / FOLDER
    folder.mkdir(exist_ok=True)
    path = folder / f"{entry.pid}.json"
    temp = folder / f".{entry.pid}.json"
    temp.write_text(json.dumps(asdict(entry)))
    os.replace(temp, path)  # noqa: PTH105
    return path


def entries(store: Store) -> Iterator[tuple[Path, Entry]]:
    """All entries, those of killed engines too; what cannot be read is passed over."""
    for path in sorted((store.local_dir() / FOLDER).glob("*.json")):
        try:
            found = json.loads(path.read_text())
            yield path, Entry(**{name: found[name] for name in Entry.__dataclass_fields__ if name in found})
        except (OSError, ValueError, TypeError):
            continue
