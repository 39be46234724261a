"""What is shown while a run is driven: each line that a task prints, and how the steps get on.

A Screen writes plain lines: two for a step, when its first task starts and when its last one ends, however many tasks there are, and
some for failures. On a terminal it has colours and, below the lines, a live table (rich, imported only there) with a row a step.
Elsewhere no control character leaves it. Everything is called in the run's own loop; nothing here waits.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from flowbook.cli.failure import reason
from flowbook.cli.text import STEP_COLOURS, clean, has_colours, styled
from flowbook.engine.events import Task, task_of
from flowbook.spec.amounts import counted, seconds_text
from flowbook.spec.flow import Spec, task_name
from flowbook.store import layout

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

    from flowbook.engine.scheduler import Run
    from flowbook.engine.state import RunState

CHUNK = 1_000_000  # bytes of output read at once
LINE_LIMIT = 10_000  # characters; a longer line is shown in pieces
LONG = 100  # characters: what is longer, or has lines, is told once
AS_TOLD = "as told above"
PRINTED, PRINTED_LINES = 20_000, 200  # characters and lines kept of what a task printed last, to know whether its error was among it
MOST_FAILURES = 5  # told one by one, of one step; so are retries and warnings
PAINT_S = 0.2
PATIENCE_S = 0.7  # a run that is over sooner needs no table
MOST_ROWS = 15  # of the live table; a run of more steps shows those that run
OPEN = ("waiting", "ready", "launched", "backoff")


@dataclass
class Tail:
    """What was read of one attempt's output so far."""

    offset: int = 0
    rest: bytes = b""  # the line that has no end yet


@dataclass
class StepLine:
    """What was said of one step."""

    begun: float | None = None  # seconds since the epoch, as the events have it
    last: float | None = None
    told: dict[str, int] = field(default_factory=dict)  # kind of line → times it was, or would have been, said
    first: dict[tuple[str, str], Task] = field(default_factory=dict)  # kind of line, its words → of whom they were said
    same: dict[str, int] = field(default_factory=dict)  # kind of line → times it was not said, since another task had the same words
    starts: bool = False  # a task of it was launched
    done: bool = False


def screen_for(spec: Spec, *, quiet: bool = False, stream: TextIO | None = None) -> Screen:
    """The screen that fits where the output goes."""
    stream = stream or sys.stdout
    return Terminal(spec, stream, quiet) if has_colours(stream) and not quiet else Screen(spec, stream, quiet)


class Screen:
    """Plain lines. `quiet`: only what tasks print."""

    def __init__(self, spec: Spec, stream: TextIO, quiet: bool = False) -> None:
        self.spec, self.stream, self.quiet = spec, stream, quiet
        self.colours = has_colours(stream)
        self._tails: dict[tuple[Task, int], Tail] = {}
        self._lines = {step.name: StepLine() for step in spec.steps}
        self._colour = {step.name: STEP_COLOURS[i % len(STEP_COLOURS)] for i, step in enumerate(spec.steps)}
        self._before = {
            step.name: [each.name for each in spec.steps if each.next is not None and step.name in each.next.steps and each is not step]
            for step in spec.steps
        }
        self._starting: list[str] = []
        self._broken = False
        self._trouble = ""
        self._waits: dict[Task, str] = {}  # of a pod of a cluster
        self._printed: dict[Task, str] = {}
        self._told: dict[str, None] = {}  # long passages that stand on the screen

    # ---- what the run tells -----------------------------------------------------------------------------------------------

    def event(self, event: Mapping[str, Any], state: RunState | None) -> None:
        """One event of the log, after it was recorded; `settled` follows after the last that `state` knows."""
        kind = event["e"]
        if kind == "run_started":
            self.say(
                f"run {self.spec.run} of {self.spec.flow}" + (f", which goes on with run {self.spec.origin}" if self.spec.origin else "")
            )
        if not event.get("step"):
            return
        task, line = task_of(event), self._lines[event["step"]]
        if kind in ("succeeded", "failed", "lost", "stopped"):
            self._flush(task, event.get("attempt", 0))
        if kind in ("launched", "reused") and line.begun is None:
            line.begun = event["at"]
        if kind == "launched" and not line.starts:
            line.starts = True
            self._starting.append(task.step)
        line.last = event["at"]
        if kind in ("launched", "succeeded", "failed", "lost", "skipped"):
            getattr(self, f"_on_{kind}")(task, event, line, state)
        if kind in ("succeeded", "failed", "lost", "stopped"):
            self._printed.pop(task, None)

    def _on_launched(self, task: Task, event: Mapping[str, Any], line: StepLine, state: RunState | None) -> None:
        for note in event.get("notes", ()):
            self._some(line, "notes", f"{self._name(task.step, task)}: {note}", "yellow")

    def _on_succeeded(self, task: Task, event: Mapping[str, Any], line: StepLine, state: RunState | None) -> None:
        for warning in event.get("warnings", ()):
            self._some(line, "warnings", f"{self._name(task.step, task)}: {warning}", "yellow")

    def _on_failed(self, task: Task, event: Mapping[str, Any], line: StepLine, state: RunState | None) -> None:
        error = event.get("error") or {}
        why = reason(error).strip() or "failed"
        if why in self._printed.get(task, ""):
            self._tell(why)
        if self._is_same(line, "failures", why, task):
            return
        what = self.briefly(why).splitlines()[0]
        item = f" (item {error['item']})" if error.get("item") else ""
        again = state is not None and state.tasks[task].state not in ("failed",)
        tried = " and is tried again" if again else ""
        text = f"{self._name(task.step, task)}{item} failed in attempt {event.get('attempt', 0) + 1}{tried}: {what}"
        if self._some(line, "failures", text, "red"):
            line.first.setdefault(("failures", why), task)
            if what == why:
                self._tell(why)

    def _on_lost(self, task: Task, event: Mapping[str, Any], line: StepLine, state: RunState | None) -> None:
        self._some(line, "losses", f"{self._name(task.step, task)} was lost and is started again: {event.get('message', '')}", "yellow")

    def _on_skipped(self, task: Task, event: Mapping[str, Any], line: StepLine, state: RunState | None) -> None:
        line.begun = event["at"] if line.begun is None else line.begun

    def _is_same(self, line: StepLine, kind: str, words: str, task: Task) -> bool:
        """Whether these words were said of another task of the step: then they are only counted."""
        same = line.first.get((kind, words), task) != task
        if same:
            line.same[kind] = line.same.get(kind, 0) + 1
        return same

    def _tell(self, passage: str) -> None:
        if not self.quiet and (len(passage) > LONG or "\n" in passage):
            self._told[passage] = None

    def briefly(self, text: str) -> str:
        """Without the long passages that stand above."""
        for passage in sorted(self._told, key=len, reverse=True):
            text = text.replace(passage, AS_TOLD)
        return text

    def _some(self, line: StepLine, kind: str, text: str, style: str) -> bool:
        """Say it, if not too much of that kind (a word in the plural) was said of the step. Gives whether it was said."""
        told = line.told[kind] = line.told.get(kind, 0) + 1
        if told <= MOST_FAILURES:
            self.say(styled(text, style, self.colours))
        elif told == MOST_FAILURES + 1:
            self.say(f"(more {kind} of this step are only counted)")
        return told <= MOST_FAILURES

    def settled(self, state: RunState) -> None:
        """All events so far were told: say of each step that has just ended how it went.

        A step has ended when those before it have, and no task of it is open.
        """
        for name, line in self._lines.items():
            if line.done or line.begun is None:
                continue
            counts = state.counts(name)
            if any(counts.get(word) for word in OPEN) or not all(self._lines[before].done for before in self._before[name]):
                continue
            line.done = True
            for kind, number in line.same.items():
                self.say(f"({counted(number, f'more {kind[:-1]}', f'more {kind}')} of {self._name(name)} with the same words)")
            if any(counts.get(word) for word in ("succeeded", "failed", "stopped")):
                self.say(self._ended(name, state, line))
        for name in self._starting:  # after those that have just ended
            self.say(f"{self._name(name)} starts")
        self._starting.clear()

    def _ended(self, step: str, state: RunState, line: StepLine) -> str:
        counts = state.counts(step)
        total = sum(counts.values())
        reused = sum(
            1 for found in state.tasks.values() if found.origin is not None and found.task.step == step and found.task.part == "body"
        )
        words = [f"{counts[word]:,} {word}" for word in ("failed", "skipped", "stopped") if counts.get(word)]
        words += [f"{reused:,} taken over"] if reused else []
        seconds = seconds_text((line.last or 0) - (line.begun or 0))
        good = not counts.get("failed") and not counts.get("stopped")
        mark = styled("✓" if good else "✗", "green" if good else "red", self.colours) if self.colours else ("done" if good else "ended")
        how = f"{counts.get('succeeded', 0):,} of {total:,} tasks" if total > 1 else ""
        told = ", ".join(part for part in (how, *words, seconds) if part)
        return f"{mark} {self._name(step)}: {told}" if self.colours else f"{self._name(step)} {mark}: {told}"

    # ---- what tasks print -------------------------------------------------------------------------------------------------

    def hint(self, hint: Mapping[str, Any], run: Run) -> None:
        """What the engine tells beside the log: more was printed, something keeps it from going on."""
        if hint["say"] == "trouble":
            self._trouble = hint["message"]
            self.say(styled(f"! {self._trouble}", "yellow", self.colours) if self._trouble else "it goes on")
        elif hint.get("f") == "phase" and hint.get("why"):
            task = task_of(hint)
            if self._waits.get(task) != hint["why"]:
                self._waits[task] = hint["why"]
                self._on_waits(task, hint["phase"], hint["why"])
        elif hint["say"] == "output":
            task = task_of(hint)
            live = run.live.get(task)
            if live is not None and live.attempt == hint["attempt"]:
                self.output(task, live.attempt, live.output)

    def _on_waits(self, task: Task, phase: str, why: str) -> None:
        line = self._lines[task.step]
        if self._is_same(line, "waits", why, task):
            return
        if self._some(line, "waits", f"{self._name(task.step, task)} is {phase}: {self.briefly(why)}", "yellow"):
            line.first.setdefault(("waits", why), task)
            self._tell(why)

    def output(self, task: Task, attempt: int, file: Path) -> None:
        """Show what was printed since the last look."""
        tail = self._tails.setdefault((task, attempt), Tail())
        try:
            with file.open("rb") as printed:
                printed.seek(tail.offset)
                while data := printed.read(CHUNK):
                    tail.offset += len(data)
                    *lines, tail.rest = (tail.rest + data).split(b"\n")
                    self._show(task, lines)
                    if len(tail.rest) > LINE_LIMIT:  # a progress bar: only its last state is of interest
                        tail.rest = tail.rest.rpartition(b"\r")[2][-LINE_LIMIT:]
        except OSError:
            return  # it was moved into the store a moment ago

    def _flush(self, task: Task, attempt: int) -> None:
        tail = self._tails.pop((task, attempt), None)
        if tail is not None and tail.rest:
            self._show(task, [tail.rest])

    def _show(self, task: Task, lines: list[bytes]) -> None:
        if lines:
            prefix = styled(
                f"[{self.spec.run}/{task.step}/{layout.task_key(task.index, task.part)}]", self._colour[task.step], self.colours
            )
            last = b"\n".join(lines[-PRINTED_LINES:])[-PRINTED:].decode("utf-8", "replace")
            self._printed[task] = f"{self._printed.get(task, '')}\n{last}"[-PRINTED:]
            self._write([f"{prefix} {clean(line.decode('utf-8', 'replace'), self.colours)}" for line in lines])

    # ---- writing ----------------------------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """A line of our own."""
        if not self.quiet:
            self._write([text])

    def tick(self, state: RunState) -> None:
        """Called ten times a second."""

    def finish(self, ended: str, seconds: float) -> None:
        """The last line."""
        style = {"succeeded": "green bold", "failed": "red bold"}.get(ended, "yellow bold")
        self.say(styled(f"run {self.spec.run} of {self.spec.flow} {_verb(ended)} after {seconds_text(seconds)}", style, self.colours))

    def _name(self, step: str, task: Task | None = None) -> str:
        return styled(task_name(task.step, task.index) if task is not None else step, self._colour[step], self.colours)

    def _write(self, lines: list[str]) -> None:
        if self._broken:
            return
        try:
            self.stream.write("\n".join(lines) + "\n")
            self.stream.flush()
        except (BrokenPipeError, ValueError):  # nobody reads any more; the run goes on
            self._broken = True
        except UnicodeEncodeError:  # a terminal that knows only ASCII
            encoding = self.stream.encoding or "ascii"
            self.stream.write("\n".join(lines).encode(encoding, "replace").decode(encoding) + "\n")


def _verb(ended: str) -> str:
    return {"stopped": "was stopped"}.get(ended, ended)


class Terminal(Screen):
    """Lines with colours above a live table, which is gone when the run has ended."""

    def __init__(self, spec: Spec, stream: TextIO, quiet: bool = False) -> None:
        super().__init__(spec, stream, quiet)
        self._live: Live | None = None
        self._painted = time.monotonic() + PATIENCE_S

    def tick(self, state: RunState) -> None:
        now = time.monotonic()
        if now - self._painted < PAINT_S:
            return
        self._painted = now
        if self._live is None:
            from rich.console import Console
            from rich.live import Live

            console = Console(file=self.stream, highlight=False, soft_wrap=True)
            self._live = Live(
                self._table(state), console=console, transient=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
            )
            self._live.start()
        self._live.update(self._table(state), refresh=True)

    def finish(self, ended: str, seconds: float) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        super().finish(ended, seconds)

    def _write(self, lines: list[str]) -> None:
        if self._live is None:
            super()._write(lines)
            return
        from rich.text import Text

        self._live.console.print(Text.from_ansi("\n".join(lines)))

    def _table(self, state: RunState) -> Table:
        """A row a step that runs or has ended: name, tasks by state, time."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        shown = [step.name for step in self.spec.steps if self._lines[step.name].begun is not None and not self._lines[step.name].done]
        for name in shown[:MOST_ROWS]:
            counts, line = state.counts(name), self._lines[name]
            total, ended = sum(counts.values()), sum(counts.get(word, 0) for word in ("succeeded", "failed", "skipped", "stopped"))
            failed = f"[red]{counts['failed']:,} failed[/]" if counts.get("failed") else ""
            waiting = f"{counts['backoff']:,} wait to be tried again" if counts.get("backoff") else ""
            table.add_row(
                f"[{self._colour[name]}]{name}[/]",
                ProgressBar(total=total or 1, completed=ended, width=24),
                f"{ended:,} of {total:,}",
                f"{counts.get('launched', 0):,} running",
                failed,
                waiting,
                seconds_text(time.time() - (line.begun or time.time())),
            )
        if len(shown) > MOST_ROWS:
            table.add_row(f"… {len(shown) - MOST_ROWS} more steps")
        return table
