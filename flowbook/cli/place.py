"""Where a command works: the flow, its file, the store, and how commands are spelled back to the user."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from flowbook.cli import program
from flowbook.cli.arguments import Given
from flowbook.cli.text import meant
from flowbook.errors import DefinitionError, Finding, StoreError
from flowbook.store import layout

if TYPE_CHECKING:
    from flowbook.settings import Settings
    from flowbook.spec.flow import Spec
    from flowbook.store.base import Store

PING_S = 2.0  # for an engine to say which runs it drives


@dataclass(frozen=True)
class RunPath:
    """RUN/STEP/TASK as typed; what was left out is None."""

    flow: str
    run: str
    step: str | None = None
    task: str | None = None


@dataclass(frozen=True)
class Place:
    """A command's surroundings. `cls` None: a command that only reads the store, without a flow file."""

    cls: type | None
    given: Given = field(repr=False)

    @classmethod
    def of(cls, flow: type | None, given: Given) -> Place:
        return cls(flow, given)

    @property
    def flow(self) -> str | None:
        return self.cls.__name__ if self.cls is not None else None

    @property
    def folder(self) -> Path:
        """That of the flow file: settings are looked for from there upwards."""
        file = getattr(sys.modules.get("__main__"), "__file__", None) if self.cls is not None else None
        return Path(file).resolve().parent if file else Path.cwd()

    @cached_property
    def settings(self) -> Settings:
        from flowbook.settings import load_settings
        from flowbook.store import preview

        found = load_settings(self.folder, os.environ)
        preview.use(found.previews)
        return found

    @cached_property
    def store(self) -> Store:
        from flowbook.store.base import open_store

        return open_store(self.settings.place)

    def spell(self, command: str, *arguments: str) -> str:
        """A command as the user would type it: ``python flow.py resume``, ``flowbook resume flow.py``."""
        file = program.file_argument()
        words = [command, *([file] if file else []), *arguments]
        return f"{program.spelled()} {' '.join(map(shlex.quote, words))}"

    # ---- runs ----

    def runs(self, flow: str) -> list[str]:
        """The ids of a flow's runs, oldest first."""
        found = [run for run in self.store.names(f"flows/{flow}") if self.store.exists(layout.spec(flow, run))]
        return sorted(found, key=layout.run_order)

    def flows(self) -> list[str]:
        return sorted(self.store.names("flows"))

    def known_flow(self, flow: str | None) -> str:
        """The flow that is meant. Raises DefinitionError for one that the store does not have."""
        name = flow or self.flow
        if name is None:
            raise DefinitionError(Finding("", "which flow?", meant("", self.flows(), "Flows of the store")))
        if name != self.flow and name not in self.flows():
            raise DefinitionError(Finding("", f"the store has no flow {name!r}", meant(name, self.flows(), "Flows of the store")))
        return name

    def known_run(self, flow: str, run: str) -> str:
        """Raises DefinitionError, with the nearest, for a run that is not there. ``latest`` is the newest."""
        ids = self.runs(flow)
        if run == "latest" and ids:
            return ids[-1]
        if not ids:
            raise DefinitionError(Finding("", f"{flow} has no run yet", f"`{self.spell('run')}` starts one." if self.cls else ""))
        if run not in ids:
            newest = ids[::-1]
            raise DefinitionError(Finding("", f"there is no run {run!r} of {flow}", meant(run, newest, f"Runs of {flow}, newest first")))
        return run

    def driven(self) -> set[tuple[str, str]]:
        """The runs that processes of this machine drive now: flow and run."""
        from flowbook.engine import registry
        from flowbook.kernel.engine import ping

        try:
            engines = [entry for _, entry in registry.entries(self.store)]
        except (OSError, StoreError):
            return set()
        answers = [ping(entry.socket, PING_S) for entry in engines]
        return {(str(flow), str(run)) for answer in answers for flow, run in (answer or {}).get("runs", ())}

    def spec(self, flow: str, run: str) -> Spec:
        """What `run.json` holds. Raises StoreError, naming the key, if it is damaged."""
        from flowbook.spec.flow import Spec, from_json

        key = layout.spec(flow, run)
        try:
            found = from_json(Spec, json.loads(self.store.get(key)))
        except (ValueError, TypeError, KeyError, AttributeError):
            raise StoreError(f"{key} is damaged: it does not hold the spec of a run. Start a new run.") from None
        assert isinstance(found, Spec)
        return found

    def path(self, text: str | None, parts: Sequence[str] = ("RUN", "STEP", "TASK")) -> RunPath:
        """``3/train/2`` with a flow file, ``TrainFlow/3/train/2`` in any case; without RUN the newest run is meant.

        A task may be written as the engine says it, ``train[2]``. Raises DefinitionError naming the part that is wrong.
        """
        words = _words(text or "")
        if self.flow is None or (words and words[0] == self.flow):
            form = "/".join(["FLOW", *parts])
            flow, words = self.known_flow(words[0] if words else None), words[1:]
        else:
            form, flow = "/".join(parts), self.known_flow(None)
        if not words or self._is_step(flow, words[0]):
            words = ["latest", *words]
        if len(words) > len(parts):
            raise DefinitionError(
                Finding(
                    "", f"{text!r} is not {form}", f"An example: {form.replace('RUN', '3').replace('STEP', 'train').replace('TASK', '0')}"
                )
            )
        return RunPath(flow, self.known_run(flow, words[0]), *words[1:])

    def _is_step(self, flow: str, word: str) -> bool:
        """Whether a word that is no run names a step of the newest run."""
        if word.isdigit() or word == "latest":
            return False
        ids = self.runs(flow)
        return bool(ids) and word not in ids and any(step.name == word for step in self.spec(flow, ids[-1]).steps)


def _words(path: str) -> list[str]:
    """The parts of a path; tasks as their keys are written.

    >>> _words("3/train[1, 2]"), _words("3/train/1,2")
    (['3', 'train', '1.2'], ['3', 'train', '1.2'])
    """
    words = [word for word in re.sub(r"\[([\d, ]+)\]$", r"/\1", path.strip("/ ")).split("/") if word]
    return [re.sub(r"[, ]+", ".", word) if re.fullmatch(r"\d+[\d, ]*", word) else word for word in words]
