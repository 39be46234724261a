"""A project for the tests of the worker: hand-made specs in a files store, and real workers started on them."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowbook.spec import flow as flows
from flowbook.spec.flow import Foreach, Input, Options, Spec, Step
from flowbook.store import codec, layout, results
from flowbook.store.files import FilesStore

Json = Any
FLOW, RUN = "demo", "1"


@dataclass(frozen=True)
class Ran:
    """What became of one worker."""

    code: int
    frames: list[dict[str, Json]]
    output: str
    commit: dict[str, Json] | None

    @property
    def error(self) -> dict[str, Json]:
        return next(frame["error"] for frame in self.frames if frame["f"] == "failed")

    @property
    def displays(self) -> list[dict[str, Json]]:
        return [frame for frame in self.frames if frame["f"] == "display"]

    @property
    def artifacts(self) -> dict[str, Json]:
        assert self.commit is not None, self.output + str(self.frames)
        return self.commit["artifacts"]


def cell(name: str, source: str, number: int = 3, **fields: Any) -> Step:
    """A step whose body stands under its magic line, as in a notebook. `foreach` and other options go by name."""
    options = {key: fields.pop(key) for key in list(fields) if key in {f.name for f in dataclasses.fields(Options)}}
    if isinstance(text := options.get("foreach"), str):
        target, _, expr = text.partition(" in ")
        options["foreach"] = Foreach(target, expr, tuple(part.strip(" ()") for part in target.split(",")))
    return Step(name, f"\n{source}", f"<flowstep {name}>", f"Cell In[{number}]", options=Options(**options), **fields)


def reads(*names: str, makers: tuple[str, ...] = (), captured: bool = False, required: bool = True) -> tuple[Input, ...]:
    return tuple(Input(name, makers, captured, required) for name in names)


class Project:
    def __init__(self, folder: Path, root: Path | None = None) -> None:
        self.folder = folder
        self.store = FilesStore(root or folder / "store" / "default")
        self.captures: dict[str, Json] = {}
        self.sources: dict[str, Json] = {}
        self.fields: dict[str, Any] = {}
        self.steps: tuple[Step, ...] = ()

    def capture(self, source: str, number: int = 1) -> None:
        """Run a plain cell here, and capture every name that it binds."""
        filename = f"<cell {number}>"
        space: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(source, filename, "exec"), space)
        self.sources[filename] = {"label": f"Cell In[{number}]", "source": source}
        for name, value in space.items():
            if name.startswith("__"):
                continue
            if type(value).__name__ == "module":
                self.captures[name] = {"entry": codec.entry(self.store, name, value), "kind": "module", "key": name, "needs": []}
                continue
            encoded = codec.encode(value, name=name, main=space, root=True, store=self.store)
            needs = ({ref.partition(".")[0] for ref in encoded.refs} | encoded.globals) - {name}
            self.captures[name] = {"entry": codec.finish(self.store, encoded, value), "kind": "data", "key": name, "needs": sorted(needs)}

    def define(self, *steps: Step, **fields: Any) -> Spec:
        """Write run.json."""
        for step in steps:
            line = f"%%flowstep {step.name}"
            if step.options.foreach:
                line += f' --foreach "{step.options.foreach.target} in {step.options.foreach.expr}"'
            if step.options.when:
                line += f' --when "{step.options.when}"'
            self.sources[step.filename] = {"label": step.label, "source": line + step.source}
        self.steps = steps
        spec = Spec(FLOW, RUN, steps, captures=self.captures, sources=self.sources, **fields)
        self.store.create(layout.spec(FLOW, RUN), json.dumps(flows.to_json(spec)).encode())
        return spec

    def order(self, step: str, index: tuple[int, ...] = (), **fields: Json) -> dict[str, Json]:
        order = {"store": self.store.describe(), "flow": FLOW, "run": RUN, "step": step, "index": list(index), "part": "body"}
        order |= {
            "attempt": 0,
            "inputs": {},
            "joins": {},
            "item": None,
            "failures": [],
            "cwd": str(self.folder),
            "sys_path": list(sys.path),
        }
        return order | {"scratch": str(self.folder / "scratch")} | fields

    def made(self, *names: str, by: str, index: tuple[int, ...] = ()) -> dict[str, Json]:
        """The part "inputs" of an order."""
        return {name: {"run": RUN, "step": by, "index": list(index)} for name in names}

    def run(self, step: str, index: tuple[int, ...] = (), env: Mapping[str, str] | None = None, **fields: Json) -> Ran:
        """Start a real worker on a task, and wait for its end."""
        order = self.order(step, index, **fields)
        output = self.folder / "output"
        frames = self.folder / "frames"
        output.unlink(missing_ok=True)
        out = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        pipe = os.open(frames, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-m", "flowbook.worker"],
                input=json.dumps({**order, "frames_fd": pipe}).encode(),
                stdout=out,
                stderr=out,
                pass_fds=(pipe,),
                env={**os.environ, **(env or {})},
                timeout=60,
                check=False,
            )
        finally:
            os.close(out)
            os.close(pipe)
        told = [json.loads(line) for line in frames.read_text().splitlines()]
        text = output.read_bytes().decode("utf-8", "replace")
        return Ran(done.returncode, told, text, self.commit(step, index, order["part"]))

    def commit(self, step: str, index: tuple[int, ...] = (), part: str = "body") -> dict[str, Json] | None:
        return results.read_commit(self.store, FLOW, RUN, step, index, part)

    def value(self, entry: Json, main: Any = None) -> Any:
        return codec.load(self.store, entry, main=main if main is not None else {})

    def body(self, source: str, **fields: Any) -> Ran:
        """Run a flow of one step."""
        self.define(cell("only", source, **fields))
        return self.run("only")

    def run_all(self) -> None:
        """Run every step of a flow in its order, as an engine would: for tests whose steps all succeed. One level of fan-out."""
        counts: dict[str, int] = {}
        ids: dict[str, list[str]] = {}
        for step in self.steps:
            plan = None
            if step.planned:
                if step.host is None:
                    ran = self.run(step.name, part="plan", **self._given(step, (), step.plan_inputs, counts))
                    plan = (ran.commit or {}).get("plans", {}).get(step.name)
                else:
                    plan = (self.commit(step.host) or {})["plans"][step.name]
                assert plan is not None and "error" not in plan, plan
                if plan.get("when") is False:
                    continue
            if step.options.foreach:
                assert plan is not None
                counts[step.name] = plan["count"]
                ids[step.name] = [plan["ids"][i : i + 22] for i in range(0, len(plan["ids"]), 22)]
            for i in range(counts[step.scope[0]]) if step.scope else [None]:
                index = () if i is None else (i,)
                item = {"blob": plan["items"], "i": i} if step.options.foreach and plan else None
                own = [] if i is None else [ids[step.scope[0]][i]]
                ran = self.run(step.name, index, item=item, ids=own, **self._given(step, index, step.inputs, counts))
                assert ran.code == 0, ran.frames

    def _given(self, step: Step, index: tuple[int, ...], inputs: tuple[Input, ...], counts: dict[str, int]) -> dict[str, Json]:
        scopes = {other.name: other.scope for other in self.steps}
        found = {}
        for given in inputs:
            for maker in given.makers:
                where = index[: len(scopes[maker])]
                if given.name in (self.commit(maker, where) or {}).get("artifacts", {}):
                    found |= self.made(given.name, by=maker, index=where)
                    break
        joins = {
            name: {"index": [], "count": counts[scopes[name][0]] if scopes[name] else None, "exceptions": {}, "run": RUN}
            for name in step.options.join
        }
        return {"inputs": found, "joins": joins}
