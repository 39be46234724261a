"""`from flowbook import flow`: what `%flow` does, from Python; and the handle of a run, which can be awaited.

run = await flow.run(lr=0.1)       # one of many, in a plain loop
run["best"]                        # an artifact of that very run, whatever ran since
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flowbook.errors import ArtifactNotLoaded

if TYPE_CHECKING:
    from flowbook.kernel.session import Run, Session
    from flowbook.spec.flowspec import FlowSpec


def _session() -> Session:
    from flowbook.kernel.session import current_session

    return current_session()


class RunHandle:
    """One run: `await run`, `run.wait()`, `run["name"]`, `run["step"]`, `run.stop()`."""

    def __init__(self, session: Session, run: Run) -> None:
        self._session, self._run = session, run
        self._shown_in: int | None = session.shell.execution_count  # its status is displayed by `%flow run` in this cell

    @property
    def id(self) -> str:
        return self._run.id

    @property
    def flow(self) -> str:
        return self._run.spec.flow

    @property
    def state(self) -> str:
        """running, succeeded, failed, stopped, or lost (open, but its engine is gone: `%flow attach` goes on with it)."""
        return self._run.view.ended or "running"

    @property
    def params(self) -> dict[str, Any]:
        return dict(self._run.params)

    def wait(self, timeout: float | None = None) -> RunHandle:
        """Wait for the end; raises StepFailed or RunStopped. An interrupt ends the wait, not the run."""
        from flowbook.kernel.names import interruptible

        with interruptible():
            self._session.wait(self._run, timeout)
        self._session.outcome(self._run)
        return self

    def __await__(self) -> Generator[Any, None, RunHandle]:
        return self._finished().__await__()

    async def _finished(self) -> RunHandle:
        # The kernel's own loop goes on meanwhile, so widgets and comms stay alive; cancelling ends the wait only.
        while self._run.view.ended is None:
            await asyncio.sleep(0.02)
        self._session.outcome(self._run)
        return self

    def stop(self, step: str | None = None, index: int | Sequence[int] | None = None) -> str:
        wanted = (index,) if isinstance(index, int) else index
        return self._session.stop(self._run, step, wanted)

    def __getitem__(self, name: str) -> Any:
        """A step's handle, or the value of an artifact made outside a fan-out."""
        from flowbook.kernel.names import StepHandle, interruptible, task_result

        spec = self._run.spec
        flow = self._session.flow(spec.flow)
        if any(s.name == name for s in spec.steps):
            return StepHandle(self._session, flow, name, self._run)
        if spec.steps and spec.steps[0].method is not None:
            return self._of_class(name)
        makers = [s for s in reversed(spec.steps) if not s.scope and name in s.saves]
        if not makers:
            made = sorted({n for s in spec.steps if not s.scope for n in s.saves})
            raise KeyError(f"run {self.id} makes no {name!r}; it makes {', '.join(made)}")
        with interruptible():
            self._session.wait(self._run)
        for step in makers:
            result = task_result(self._session, self._run, step.name, ())
            if result.state == "succeeded" and name in self._session.commit(self._run, step.name, ())["artifacts"]:
                return result[name]
        raise ArtifactNotLoaded(f"`{name}` was not made in run {self.id} ({self.state})")

    def _of_class(self, name: str) -> Any:
        """An artifact as the last step of a FlowSpec leaves it."""
        from flowbook.kernel.names import interruptible, task_result

        with interruptible():
            self._session.wait(self._run)
        last = next(step.name for step in reversed(self._run.spec.steps) if step.next is None)
        return task_result(self._session, self._run, last, ())[name]

    def _ipython_display_(self) -> None:
        if self._session.shell.execution_count != self._shown_in:
            from IPython.display import publish_display_data

            publish_display_data(dict(self._repr_mimebundle_()))
        self._shown_in = None

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Mapping[str, str]:
        from flowbook.kernel.display import status_html, status_text

        return {"text/plain": status_text(self._run), "text/html": status_html(self._run)}

    def __repr__(self) -> str:
        return f"<run {self.id} of {self.flow}: {self.state}>"


def _option(name: str, value: str | None) -> list[str]:
    return [] if value is None else [name, shlex.quote(value)]


class Flow:
    """The object `flow`: each method is the `%flow` command of the same name."""

    @property
    def mine(self) -> dict[str, Any]:
        """Plain variables whose names the flow took; captures look here first."""
        return _session().names.mine

    def run(
        self,
        step: str | type[FlowSpec] | None = None,
        *,
        flow: str | None = None,
        wait: bool = False,
        fresh: bool = False,
        tag: str | Sequence[str] = (),
        max_parallel: int | None = None,
        with_: str | Sequence[str] = (),
        yes: bool = False,
        **params: Any,
    ) -> RunHandle:
        """`step` is the name of a step, or a FlowSpec class of this notebook. `with_` is what ``--with`` takes: "kubernetes"."""
        from flowbook.kernel.magics import start, with_kubernetes

        common: dict[str, Any] = {
            "wait": wait,
            "tags": (tag,) if isinstance(tag, str) else tuple(tag),
            "max_parallel": max_parallel,
            "params": params,
            "fresh": fresh,
            "kubernetes": with_kubernetes((with_,) if isinstance(with_, str) else tuple(with_)),
            "yes": yes,
        }
        if isinstance(step, type):
            return start(_session(), cls=step, **common)
        return start(_session(), step=step, flow=flow, **common)

    def resume(self, run: str | int | None = None, *, flow: str | None = None, wait: bool = False, **params: Any) -> RunHandle:
        """Run what a failed or stopped run did not finish; `params` get another value than they had."""
        from flowbook.kernel.magics import start_resume

        return start_resume(_session(), None if run is None else str(run), flow, wait, params)

    def attach(self, run: str | int | None = None, *, flow: str | None = None, wait: bool = False) -> RunHandle:
        """Take up a run of an earlier kernel: its display and its names come back."""
        from flowbook.kernel.magics import start_attach

        return start_attach(_session(), None if run is None else str(run), flow, wait)

    def at(self, run: str | int | None = None, *, flow: str | None = None) -> RunHandle:
        """Let the names be those of an earlier run; without one, of the newest again."""
        from flowbook.kernel.magics import show_at

        return show_at(_session(), None if run is None else str(run), flow)

    def debug(self, task: str = "", *, run: str | int | None = None, flow: str | None = None) -> None:
        """Run a task again in this kernel, so that `%debug` and breakpoints stop in its cell; by default the first that failed."""
        __tracebackhide__ = True
        words = [task.replace(" ", ""), *(["--run", str(run)] if run is not None else []), *(["--flow", flow] if flow else [])]
        self._command("debug", " ".join(words))

    def load(self, name: str) -> Any:
        """Load one name into the kernel, however large it is, and return it."""
        return _session().names.load(name, huge=True)

    def wait(self, run: str | int | None = None, *, flow: str | None = None, timeout: float | None = None) -> RunHandle:
        session = _session()
        return RunHandle(session, session.runs.find(run, flow)).wait(timeout)

    def __getitem__(self, run: str | int) -> RunHandle:
        session = _session()
        return RunHandle(session, session.runs.find(run))

    def _command(self, name: str, line: str) -> Any:
        __tracebackhide__ = True
        from flowbook.kernel.magics import COMMANDS

        return COMMANDS[name].call(_session(), line.strip())

    def status(self, run: str | int = "") -> None:
        self._command("status", str(run))

    def logs(self, task: str = "") -> None:
        self._command("logs", task)

    def stop(self, task: str = "") -> None:
        self._command("stop", task)

    def runs(self) -> None:
        self._command("runs", "")

    def show(self, step: str = "") -> None:
        self._command("show", step)

    def check(self, *, serial: bool = False) -> None:
        self._command("check", "--serial" if serial else "")

    def graph(self) -> Any:
        return self._command("graph", "")

    def artifacts(self, run: str | int = "") -> None:
        self._command("artifacts", str(run))

    def card(self, path: str, *, id: str | None = None, flow: str | None = None) -> None:
        """Show the cards of a step or a task: ``train``, ``train[2]``, ``12/train``, ``12/train/2``."""
        self._command("card", " ".join([shlex.quote(path), *_option("--id", id), *_option("--flow", flow)]))

    def report(self, out: str | None = None, *, run: str | int | None = None, flow: str | None = None) -> None:
        """Write a whole run as one HTML file."""
        self._command("report", " ".join([*([str(run)] if run is not None else []), *_option("-o", out), *_option("--flow", flow)]))

    def export(self, file: str, *, check: bool = False, class_name: str | None = None, flow: str | None = None) -> None:
        """Write the FlowSpec class that is the same flow; with `check` raise FlowbookError if the file is no longer that."""
        words = ["--check"] * check + (["--class", class_name] if class_name else []) + (["--flow", flow] if flow else [])
        self._command("export", " ".join([shlex.quote(file), *words]))

    def drop(self, step: str) -> None:
        self._command("drop", step)

    def defaults(self, line: str = "") -> None:
        self._command("defaults", line)

    def gc(self, *, keep: int | None = None, all_flows: bool = False, dry_run: bool = False, flow: str | None = None) -> None:
        """Remove old runs and what only they used; `keep` takes the place of the setting keep_runs."""
        words = ["--all-flows"] * all_flows + ["--dry-run"] * dry_run
        words += ["--keep", str(keep)] if keep is not None else []
        self._command("gc", " ".join([*words, *(["--flow", flow] if flow else [])]))

    def doctor(self, *, verify: bool = False, pod: bool = False) -> None:
        self._command("doctor", f"{'--verify' if verify else ''} {'--pod' if pod else ''}")

    def __repr__(self) -> str:
        try:
            session = _session()
        except Exception as error:
            return f"<flow: {error}>"
        return "\n".join(f"<flow {f.name}: {' · '.join(f.steps)}>" for f in session.flows.values() if f.steps) or "<flow: no step yet>"


flow = Flow()
