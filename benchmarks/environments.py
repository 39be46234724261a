"""Virtual environments beside our own, of peers and of hosts: one for each file of pins, outside the checkout, made when it is first needed.

An environment is named by its pins and its Python, so a changed pin makes a new one. What makes it (``uv``, else ``venv`` and
pip) finds packages where the machine is set up to find them. A peer that cannot be installed is left out, and the table says why.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

PEERS = Path(__file__).parent / "peers"


class PeerMissing(Exception):
    """A peer cannot be installed here; the message is what the installer said."""


def environment_folder(pins: str, python: str, cache_home: Path) -> Path:
    """Where the environment for these pins is. `python` is the interpreter's path and version."""
    digest = hashlib.sha256(f"{python}\n{pins}".encode()).hexdigest()[:12]
    return cache_home / "flowbook-bench" / digest


def python_of(peer: str) -> Path:
    """The interpreter of a peer's environment, made if need be. Raises PeerMissing."""
    return python_for(PEERS / f"{peer}.txt")


@cache
def python_for(pins: Path) -> Path:
    """The interpreter of the environment for a file of pins, made if need be, by one process at a time. Raises PeerMissing."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = environment_folder(pins.read_text(), f"{sys.executable} {sys.version}", home)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            _make(pins, folder)
    return folder / "bin" / "python"


def _make(pins: Path, folder: Path) -> None:
    name, python = pins.stem, folder / "bin" / "python"
    print(f"making an environment for {name} in {folder}", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)  # half made
    uv = shutil.which("uv") or shutil.which("uv", path=Path(sys.executable).parent)
    if uv:
        _carry_out(name, [uv, "venv", "--quiet", "--python", sys.executable, str(folder)])
        _carry_out(name, [uv, "pip", "install", "--quiet", "--python", str(python), "-r", str(pins)])
    else:
        _carry_out(name, [sys.executable, "-m", "venv", str(folder)])
        _carry_out(name, [str(python), "-m", "pip", "install", "--quiet", "-r", str(pins)])
    (folder / "done").touch()


def version_of(peer: str, package: str) -> str:
    """The pinned version of a package, for the table."""
    for line in (PEERS / f"{peer}.txt").read_text().splitlines():
        name, _, rest = line.partition("==")
        if name == package:
            return rest.split(";")[0].strip()
    raise KeyError(f"{package} is not pinned in {peer}.txt")


def _carry_out(peer: str, command: list[str]) -> None:
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerMissing(f"{peer} cannot be installed: {error}") from None
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise PeerMissing(f"{peer} cannot be installed: {said[0]}")
