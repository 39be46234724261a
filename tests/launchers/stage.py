"""A place where runs are driven on a cluster: a store that its pods reach, and what a test may do to it.

`Stage` is all that the stories of pods.py know; test_pods.py makes one of a fake cluster, tests/cluster/test_launcher.py one of a real one.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol

from flowbook.engine import events
from flowbook.engine.launch.kubernetes import Pods
from flowbook.engine.scheduler import Machine, Place, Run
from flowbook.spec.flow import Foreach, Input, Options, Resources, Spec, Step, to_json
from flowbook.spec.secrets import parse_source
from flowbook.store import layout, results, trust
from flowbook.store.base import Store

Json = Any
LIMIT_S = 240.0  # for any one story; only a hang takes that long
SMALL = Resources(cpu=0.05, memory_mb=128)


class Cluster(Protocol):
    """What a test may do to a cluster, fake or real."""

    def names(self) -> list[str]: ...
    def evict(self, name: str) -> None: ...
    def secret(self, name: str, keys: dict[str, str]) -> None: ...


class Stage:
    """`settings` are those of podspec.Cluster; `environ` is that of a notebook, with its KUBECONFIG."""

    def __init__(self, store: Store, cluster: Any, settings: Mapping[str, Json], environ: Mapping[str, str]) -> None:
        self.store, self.cluster, self.settings = store, cluster, dict(settings)
        self.environ = {"PATH": os.environ["PATH"], **environ}
        self.said: list[dict[str, Any]] = []
        self.machine: Machine = Machine()

    def spec(self, *steps: Step, run: str = "1", **fields: Any) -> Spec:
        sources = {step.filename: {"label": step.label, "source": step.source} for step in steps}
        spec = Spec("demo", run, steps, sources=sources, python=fields.pop("python", ""), **fields)
        key = layout.spec("demo", run)
        self.store.create(key, trust.sign(self.store, key, to_json(spec)))
        return spec

    def run(self, *steps: Step, run: str = "1", settings: Mapping[str, Json] | None = None, adopt: bool = False, **fields: Any) -> Run:
        """A run that is yet to be driven; in a machine of its own, as an engine has it."""
        if not adopt:
            self.spec(*steps, run=run, **fields)
        place = Place(self.environ, os.getcwd(), (), {**self.settings, **(settings or {})})
        return Run(self.store, "demo", run, self.machine, place, say=self.said.append, adopt=adopt, patience_s=20)

    def drive(self, *steps: Step, **fields: Any) -> Run:
        run = self.run(*steps, **fields)
        self.complete(self.follow(run))
        return run

    async def follow(self, run: Run) -> None:
        """Drive it, with what an engine's server does meanwhile: to tell those who follow how tasks get on."""
        driven = asyncio.create_task(run.drive())
        while not driven.done():
            run.show_output()
            await asyncio.wait({driven}, timeout=0.01)
        await driven

    def complete(self, scene: Coroutine[Any, Any, Any]) -> Any:
        """In a loop of its own; the machine of the next scene is another, as that of a new engine."""

        async def whole() -> Any:
            try:
                return await asyncio.wait_for(scene, LIMIT_S)
            finally:
                self.machine.close()

        try:
            return asyncio.run(whole())
        finally:
            self.machine = Machine()

    # ---- what came of it ----

    def pods(self, run: Run) -> Pods:
        return run.machine.pods(self.store, run.place)

    def log(self, run: str = "1") -> list[dict[str, Any]]:
        return [e for key in self.store.list(layout.log_prefix("demo", run)) for e in events.unbatch(self.store.get(key), key)]

    def happened(self, run: str = "1") -> list[str]:
        return [" ".join([e["e"], *([str(events.task_of(e))] if e.get("step") else [])]) for e in self.log(run)]

    def error(self, step: str, run: str = "1") -> dict[str, Any]:
        found: dict[str, Any] = [e["error"] for e in self.log(run) if e["e"] == "failed" and e["step"] == step][-1]
        return found

    def value(self, name: str, step: str, *index: int, run: str = "1") -> Any:
        commit = results.read_commit(self.store, "demo", run, step, index)
        assert commit is not None, f"{step}{index} has no COMMIT"
        return results.Reader(self.store, "demo", {}).load(commit["artifacts"][name], name)

    def printed(self, step: str, *index: int, attempt: int = 0, run: str = "1") -> str:
        return self.store.get(layout.output("demo", run, step, index, attempt)).decode()

    def phases(self, step: str) -> list[str]:
        shown = [m["phase"] for m in self.said if m.get("f") == "phase" and m["step"] == step]
        return [phase for i, phase in enumerate(shown) if i == 0 or shown[i - 1] != phase]


async def until(seen: Callable[[], object], what: str = "it") -> None:
    """Wait for a condition; only a hang ends it."""
    deadline = time.monotonic() + LIMIT_S / 2
    while not seen():
        assert time.monotonic() < deadline, f"{what} never came"
        await asyncio.sleep(0.02)


def cell(name: str, source: str, reads: str = "", saves: str = "", kubernetes: Json = None, **options: Any) -> Step:
    """A step cell in a pod. `reads`: "x:maker y:maker"."""
    fields = {key: options.pop(key) for key in ("host", "hosted", "scope", "plan_inputs") if key in options}
    options.setdefault("resources", SMALL)
    options.setdefault("extra", (("kubernetes", json.dumps(kubernetes or {})),))
    inputs = tuple(Input(word.split(":")[0], (word.split(":")[1],)) for word in reads.split())
    names = tuple(saves.split())
    return Step(name, source, f"<{name}>", f"Cell {name}", Options(**options), inputs=inputs, saves=names, certain=names, **fields)


def named(*sources: str) -> tuple[str, ...]:
    """Sources of secrets, as a step's options hold them."""
    return tuple(parse_source(source).to_text() for source in sources)


def sweep(width: int, body: str = "y = x * 10", saves: str = "y", **options: Any) -> tuple[Step, Step, Step]:
    """start → train per item → best."""
    return (
        cell("start", f"xs = list(range({width}))", saves="xs", hosted=("train",)),
        cell(
            "train",
            body,
            saves=saves,
            foreach=Foreach("x", "xs", ("x",)),
            scope=("train",),
            host="start",
            plan_inputs=(Input("xs", ("start",)),),
            **options,
        ),
        cell("best", "total = sum(t.y for t in train)", saves="total", join=("train",)),
    )
