"""A flow file run as it is by Metaflow and by flowbook, each in a folder of its own, and what came of it: a record, plain JSON.

Metaflow lives in an environment outside the checkout (benchmarks/environments.py). Its records are kept in the user's cache folder, by
the content of the files and Metaflow's version, and in `recorded/`, so that flowbook's side is held to them where Metaflow cannot be
installed. ``python -m tests.compat.both`` writes `recorded/` anew.

The first lines of a flow file may say how it is run: ``# args:`` of the command run, ``# top:`` before it, ``# env:`` NAME=VALUE,
``# exit:`` the code with which Metaflow ends, ``# again: yes`` for two runs, ``# then: resume``.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.environments import PeerMissing, python_of, version_of

HERE = Path(__file__).parent
FLOWS = HERE / "flows"
RECORDED = HERE / "recorded"
ROOT = HERE.parent.parent
USER = "tester"

Record = list[dict[str, Any]]  # one for each command: {"exit", "run"}


@dataclass(frozen=True)
class FlowFile:
    """A file of `flows/`, and how it is run."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def flow(self) -> str:
        return re.findall(r"^class (\w+Flow)\(", self.path.read_text(), re.MULTILINE)[-1]

    def said(self, word: str) -> str:
        found = re.search(rf"^# {word}: (.*)$", self.path.read_text(), re.MULTILINE)
        return found[1] if found else ""

    @property
    def environ(self) -> dict[str, str]:
        pairs = [word.partition("=") for word in shlex.split(self.said("env"))]
        return {name: value for name, _, value in pairs}

    @property
    def commands(self) -> list[list[str]]:
        run = ["run", *shlex.split(self.said("args"))]
        return [run, *([run] if self.said("again") else []), *([shlex.split(self.said("then"))] if self.said("then") else [])]

    @property
    def exits(self) -> list[int]:
        """The exit codes of the commands."""
        return [int(self.said("exit") or 0), *[0] * (len(self.commands) - 1)]

    @property
    def digest(self) -> str:
        """Of the file, of all that it may import or read, and of the form of records."""
        form = re.findall(r"^FORM = \d+", (HERE / "dump.py").read_text(), re.MULTILINE)
        parts = [self.path, FLOWS / "shapes_helper.py", *sorted((FLOWS / "data").iterdir())]
        return hashlib.sha256(b"\0".join([str(form).encode(), *(part.read_bytes() for part in parts)])).hexdigest()[:16]


def flow_files() -> list[FlowFile]:
    return [FlowFile(path) for path in sorted(FLOWS.glob("*.py")) if not path.stem.endswith("_helper")]


# ---- running ----------------------------------------------------------------------------------------------------------------


def run_ours(flow: FlowFile, folder: Path) -> Record:
    """Under flowbook, by ``flowbook COMMAND file.py``."""
    place = _laid_out(folder)
    environ = _environ(folder) | flow.environ | {"PYTHONPATH": str(ROOT), "FLOWBOOK_STORE": str(folder / "store")}
    top = shlex.split(flow.said("top"))
    calls = [[sys.executable, "-m", "flowbook", *top, command[0], f"{flow.name}.py", *command[1:]] for command in flow.commands]
    return _record(flow, calls, place, environ, sys.executable)


def run_metaflow(flow: FlowFile, folder: Path) -> Record:
    """Under Metaflow, by ``python file.py COMMAND``. Raises PeerMissing."""
    python = str(python_of("metaflow"))
    place = _laid_out(folder)
    top = ["--no-pylint", *shlex.split(flow.said("top"))]
    calls = [[python, f"{flow.name}.py", *top, *command] for command in flow.commands]
    return _record(flow, calls, place, _environ(folder) | flow.environ, python)


def _laid_out(folder: Path) -> Path:
    place = folder / "flows"
    shutil.copytree(FLOWS, place, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(HERE / "dump.py", place)
    return place


def _environ(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("METAFLOW", "FLOWBOOK", "PYTHON"))}
    names = dict.fromkeys(("USER", "LOGNAME", "USERNAME"), "another") | {"METAFLOW_USER": USER}
    return kept | names | {"HOME": str(folder), "METAFLOW_DATASTORE_SYSROOT_LOCAL": str(folder)}


def _record(flow: FlowFile, calls: Sequence[Sequence[str]], place: Path, environ: dict[str, str], python: str) -> Record:
    found = []
    for call in calls:
        ids = place / "run_id"
        ids.unlink(missing_ok=True)
        done = _call([*call, "--run-id-file", str(ids)], place, environ)
        if not ids.exists():
            raise AssertionError(f"{flow.name}: {shlex.join(call)} began no run\n{done.stdout}\n{done.stderr}")
        dumped = _call([python, "dump.py", flow.flow, ids.read_text().strip()], place, environ)
        if dumped.returncode:
            raise AssertionError(f"{flow.name}: the run cannot be read\n{done.stdout}\n{done.stderr}\n{dumped.stderr}")
        found.append({"exit": done.returncode, "run": json.loads(dumped.stdout), "shown": done.stdout + done.stderr})
    return found


def _call(command: Sequence[str], place: Path, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=place, env=environ, capture_output=True, text=True, check=False)


# ---- what Metaflow made -----------------------------------------------------------------------------------------------------


def cached(flow: FlowFile) -> Path:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "flowbook-compat" / version_of("metaflow", "metaflow") / f"{flow.name}-{flow.digest}.json"


def made_by_metaflow(flow: FlowFile) -> Record:
    """What Metaflow made of a file: run now, or when it was last run. Raises PeerMissing."""
    kept = cached(flow)
    if not kept.exists():
        with tempfile.TemporaryDirectory(prefix="flowbook-compat-") as folder:
            record = run_metaflow(flow, Path(folder))
        if [each["exit"] for each in record] != flow.exits:
            raise AssertionError(f"{flow.name}: Metaflow ends otherwise than the file says\n{record[-1]['shown']}")
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(record))
        partial.replace(kept)
    return _bare(json.loads(kept.read_text()))


def _bare(record: Record) -> Record:
    return [{key: value for key, value in each.items() if key != "shown"} for each in record]


def recorded(flow: FlowFile) -> tuple[str, Record]:
    """The digest of the files at that time, and the record, as it is in the repository."""
    kept = json.loads((RECORDED / f"{flow.name}.json").read_text())
    return kept["digest"], kept["record"]


@functools.cache
def why_missing() -> str | None:
    """Why Metaflow cannot be had here; None if it can. Asked once, since a network that is away answers slowly."""
    for name, value in (("UV_HTTP_TIMEOUT", "30"), ("PIP_TIMEOUT", "30"), ("PIP_RETRIES", "2")):
        os.environ.setdefault(name, value)
    why = None
    for _ in range(2):
        try:
            python_of("metaflow")
            return None
        except PeerMissing as error:
            why = str(error)
    return why


def expected(flow: FlowFile) -> Record:
    """What Metaflow makes of a file, by itself if it can be had here, else as recorded, with a warning."""
    if cached(flow).exists() or (why := why_missing()) is None:
        return made_by_metaflow(flow)
    digest, record = recorded(flow)
    if digest != flow.digest:
        raise AssertionError(f"{flow.name}.py has changed since it was recorded, and Metaflow cannot be asked: {why}")
    warnings.warn(f"compared with what was recorded: {why}", stacklevel=2)
    return record


def main() -> None:
    RECORDED.mkdir(exist_ok=True)
    for flow in flow_files():
        text = json.dumps({"digest": flow.digest, "record": made_by_metaflow(flow)}, indent=1, ensure_ascii=False)
        (RECORDED / f"{flow.name}.json").write_text(f"{text}\n")
        print(flow.name)
    for left in RECORDED.glob("*.json"):
        if not (FLOWS / f"{left.stem}.py").exists():
            left.unlink()


if __name__ == "__main__":
    main()
