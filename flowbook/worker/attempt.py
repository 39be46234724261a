"""One attempt of one task, from its ORDER to its COMMIT.

    loading    a fresh main, its captures, parameters, %%flowsetup, inputs, the item
    running    the body, as a notebook runs a cell
    saving     inputs that were changed in place are found, names are saved, plans of hosted steps evaluated, COMMIT created

A Failure ends it before COMMIT. COMMIT is created once; if another attempt was faster, its result stands and this one ends quietly.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import os
import re
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flowbook.errors import ArtifactError, FlowbookError, NotPicklable, StepFailed, StoreError, StoreFull
from flowbook.spec import flow as flows
from flowbook.spec.flow import Input, Spec, Step, task_name
from flowbook.spec.retries import qualifies
from flowbook.store import codec, layout, preview, results, trust
from flowbook.store.base import Store, open_store
from flowbook.worker import current, execute, modules, output
from flowbook.worker.scope import Bound, Scope
from flowbook.worker.trace import Place, Tracer, bases_of, message_of

if TYPE_CHECKING:
    from flowbook.worker.method import MethodTask

Json = Any
Order = Mapping[str, Json]

REACH = 10_000  # objects looked at in search of what two artifacts share
EXIT_S = 5.0  # at most so long may the body's atexit functions hold up the end of the process
_MISSING = object()


class Failure(Exception):
    """The attempt failed; `error` is ERROR of docs/internals.md."""

    def __init__(self, error: dict[str, Json]) -> None:
        super().__init__(error.get("message"))
        self.error = error


class Refused(FlowbookError):
    """The body did something that would make a later result wrong, or left something undone that a later step needs."""


Refused.__name__ = Refused.__qualname__ = "StepError"


def run(order: Order) -> int:
    """Carry out one attempt. Returns the exit code, 0 if there is a COMMIT now; never raises for what an order or a body can do."""
    frames = output.Frames(order.get("frames_fd"))
    try:
        Attempt(order, frames).perform()
    except Failure as failure:
        _tell(frames, failure.error)
        return 1
    except Exception as error:  # nothing of the body: the order, the store, or a fault of ours
        found = Tracer({}).error(error)
        if not isinstance(error, FlowbookError):
            import traceback

            traceback.print_exc()
        _tell(frames, found)
        return 1
    return 0


SPECS = 4


class _Specs(dict[str, tuple[Store, Spec]]):
    """Those of the last runs: filled in a fork server, read in the processes it forks."""

    forked = False


_specs = _Specs()


def read_spec(order: Order) -> tuple[Store, Spec]:
    """The store and the spec of an order's run. Raises StoreError."""
    key = _spec_key(order)
    if key not in _specs:
        store = open_store(order["store"])
        spec = flows.from_json(Spec, trust.spec(store, order["flow"], order["run"]))
        while len(_specs) >= SPECS:
            del _specs[next(iter(_specs))]
        _specs[key] = store, spec
    return _specs[key]


def _spec_key(order: Order) -> str:
    return f"{order['flow']}/{order['run']} {order['store']}"


@functools.lru_cache(4 * SPECS)
def _mentions(texts: tuple[str, ...], word: str) -> bool:
    return any(word in text for text in texts)


def _mentions_scratch(spec: Spec) -> bool:
    """Whether some code may use `scratch` by that name; a folder that nobody uses is not made."""
    return bool(spec.modules) or _mentions(tuple(cell["source"] for cell in spec.sources.values()), "scratch")


def prepare(order: Order) -> tuple[str, ...]:
    """In a fork server: read what all attempts of a run read, and give the modules that its steps import."""
    _specs.forked = True
    try:
        spec = read_spec(order)[1]
        step = spec.step(order["step"])
        if spec.program is not None:
            execute.compile_program(spec.sources[spec.program]["source"], spec.program)
        else:
            execute.compile_cell(step.source, step.filename).binds  # noqa: B018 (kept for all tasks)
    except Exception:  # the attempt meets the same, and tells it
        return ()
    if order.get("sys_path"):
        sys.path[:] = [path for path in order["sys_path"] if isinstance(path, str)]
    return spec.imports


REHEARSALS = 12  # Python adapts code to what it does in the first eight calls


def rehearse() -> None:
    """Carry out an attempt of our own some times, so that what attempts run is warm in all processes that are forked from this one."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="flowbook-rehearsal-") as folder:
        place = {"kind": "files", "root": folder}
        store = open_store(place)
        plan = results.write_items(store, [1], name="xs")
        each = flows.Foreach("x", "xs", ("x",))
        step = Step("step", "y = x", "<rehearsal>", "rehearsal", flows.Options(foreach=each), ("step",), saves=("y",), certain=("y",))
        spec = Spec("rehearsal", "0", (step,), sources={step.filename: {"label": step.label, "source": step.source}})
        order = {"store": place, "flow": spec.flow, "step": step.name, "item": {"blob": plan["items"], "i": 0}, "index": [0], "ids": [""]}
        order |= {"scratch": f"{folder}/scratch"}
        for number in range(REHEARSALS):
            _specs[_spec_key({**order, "run": str(number)})] = store, dataclasses.replace(spec, run=str(number))
            run({**order, "run": str(number)})
    _specs.clear()
    execute.compile_cell.cache_clear()


def _tell(frames: output.Frames, error: dict[str, Json]) -> None:
    output.flush()
    if not frames.send({"f": "failed", "error": error}):
        print(error.get("traceback") or error["message"], file=sys.stderr)  # noqa: T201
        output.flush()


def leave(code: int) -> None:
    """End the process now. Threads and child processes that the body left behind do not hold it; its atexit functions get some seconds."""
    import atexit
    import threading

    def finish() -> None:
        multiprocessing = sys.modules.get("multiprocessing")
        for child in multiprocessing.active_children() if multiprocessing is not None else ():
            child.terminate()
        atexit._run_exitfuncs()

    if atexit._ncallbacks():
        last = threading.Thread(target=finish, name="flowbook-exit", daemon=True)
        last.start()
        last.join(EXIT_S)
    output.flush()
    os._exit(code)


@dataclass
class Findings:
    """What a COMMIT tells beside its artifacts."""

    warnings: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)

    def add(self, message: str, *, error: bool = False) -> None:
        if error:
            raise Refused(message)
        if message not in self.warnings:
            self.warnings.append(message)


class Attempt:
    """Opening one reads the spec; `perform` does the rest. Raises Failure, and FlowbookError for a broken order or store."""

    def __init__(self, order: Order, frames: output.Frames) -> None:
        self.order, self.frames = order, frames
        self.pid = os.getpid()
        self.store, self.spec = read_spec(order)
        preview.use(self.spec.previews)
        if self.spec.compat:
            importlib.import_module("flowbook.compat").install()  # a door: this room knows no more of it than that
        if order["step"] not in {step.name for step in self.spec.steps}:
            raise ArtifactError(f"run {order['run']} of flow {order['flow']} has no step {order['step']!r}")
        self.step: Step = self.spec.step(order["step"])
        self.index = tuple(order.get("index") or ())
        self.ids: tuple[str, ...] = tuple(order.get("ids") or map(str, self.index))
        self.part: str = order.get("part") or "body"
        self.number: int = order.get("attempt") or 0
        self.tracer = Tracer(self.spec.sources)
        self.display = output.Display(frames.show)
        self.found = Findings(list(order.get("notes") or ()))
        self.seconds = {"loading": 0.0, "running": 0.0, "saving": 0.0}
        self.item: Any = None
        self.item_repr: str | None = None
        self.caught: dict[str, Json] | None = None
        self.shown_names: frozenset[str] = frozenset()  # that the body's own text binds
        self.method: MethodTask | None = None  # of a FlowSpec
        self.saved_entries: dict[str, Json] = {}
        self._opened: list[Any] = []  # modules of cards and checkpoints

    @property
    def name(self) -> str:
        return f"step {task_name(self.step.name, self.index)}"

    # ---- the three phases -------------------------------------------------------------------------------------------

    def perform(self) -> None:
        with self._phase("loading"):
            self._prepare()
            self._guarded(self._load)
        if self.step.method is not None:
            self._perform_method()
            return
        if self.part == "plan":
            with self._phase("running"):
                plans = {self.step.name: self._guarded(lambda: self._plan(self.step), self._option_place(self.step))}
            self._commit({}, {}, plans)
            return
        with self._live():
            with self._phase("running"):
                before = dict(self.main)
                self._guarded(self._open_live)
                self._body(self._cell)
            with self._phase("saving"):
                artifacts, unsaved, plans = self._guarded(lambda: self._save(before))
                self._close_live(artifacts)
        self._commit(artifacts, unsaved, plans)

    def _perform_method(self) -> None:
        task = self.method
        assert task is not None
        with self._live():
            with self._phase("running"):
                self._guarded(self._open_live)
                self._body(task.run)
            with self._phase("saving"):
                artifacts, unsaved = self._guarded(task.artifacts)
                plans = self._guarded(task.plans)
                self._close_live(artifacts)
        self._commit(artifacts, unsaved, plans, next=task.next(), undeclared=task.read_unasked())

    # ---- cards and checkpoints ----------------------------------------------------------------------------------------

    def _parts(self) -> list[Any]:
        """The modules that offer something beside the body, of those that this step uses."""
        found: list[Any] = []
        options = self.step.options
        if options.cards or self._mentioned("card"):
            from flowbook.worker import card

            found.append(card)
        if options.checkpoint is not None or self._mentioned("checkpoint"):
            from flowbook.worker import checkpoint

            found.append(checkpoint)
        return found

    def _mentioned(self, word: str) -> bool:
        """Whether a cell or a function that goes along with it may use a name that needs no import; a method imports what it uses."""
        return self.step.method is None and _mentions(tuple(cell["source"] for cell in self.spec.sources.values()), word)

    @contextlib.contextmanager
    def _live(self) -> Iterator[None]:
        """Cards and checkpoints of an attempt that fails are closed here, with its error; else once its results are saved."""
        try:
            yield
        except Failure as failure:
            while self._opened:
                self._opened.pop().close(self, failure.error)
            raise

    def _watch_missed(self) -> None:
        """A method that uses what it has no decorator for gets something that does nothing; that is told, once."""
        from flowbook.spec import decorators

        options = self.step.options
        for door, there in ((decorators.card, bool(options.cards)), (decorators.checkpoint, options.checkpoint is not None)):
            door._set_missed(None if there else functools.partial(self._missed, door.__name__))
        texts = tuple(cell["source"] for cell in self.spec.sources.values())
        if options.checkpoint is None and (_mentions(texts, "save_checkpoint") or _mentions(texts, "load_checkpoint")):
            current.give(None, checkpoints=True)

    def _missed(self, name: str) -> None:
        lost = "shown" if name == "card" else "saved"
        message = f"step {self.step.name} uses {name}, but has no @{name}: nothing is {lost}. Add @{name} above it."
        if message not in self.found.warnings:
            print(message, file=sys.stderr)  # noqa: T201
        self.found.add(message)

    def _open_live(self) -> None:
        if self.step.method is not None:
            self._watch_missed()
        for part in self._parts():
            part.open(self)
            self._opened.append(part)

    def _close_live(self, artifacts: dict[str, Json]) -> None:
        self.saved_entries = artifacts
        while self._opened:
            self._opened.pop().close(self, self.caught)

    def _phase(self, name: str) -> _Phase:
        if name != "loading":  # with that every attempt begins
            self.frames.send({"f": "phase", "phase": name})
        return _Phase(self.seconds, name)

    def _guarded(self, action: Callable[[], Any], place: Place | None = None) -> Any:
        """The result of an action that may run user code; what it raises becomes a Failure."""
        try:
            result = action()
        except Failure:
            raise
        except BaseException as error:
            self._end_forked(error)
            raise Failure(self._error(error, place)) from None
        self._end_forked(None)
        return result

    def _error(self, error: BaseException, place: Place | None = None) -> dict[str, Json]:
        found = self.tracer.error(error, item=self.item_repr, place=place or Place(self.step.label, self.step.filename))
        if self.step.options.retry.only or self.step.options.retry.unless:
            found["bases"] = bases_of(error)
        if isinstance(error, SystemExit):
            found["message"] = f"the body called sys.exit({'' if error.code is None else repr(error.code)})"
        elif isinstance(error, KeyboardInterrupt):
            found["message"] = found["message"] or "the body raised KeyboardInterrupt"
        elif isinstance(error, StoreFull):
            found["message"] = f"the results of {self.name} cannot be saved, the store is full: {error}"
        return found

    def _end_forked(self, error: BaseException | None) -> None:
        """A child that the body forked, and that comes back out of it, is no task: it ends here and commits nothing."""
        if os.getpid() == self.pid:
            return
        output.flush()
        if isinstance(error, SystemExit):
            os._exit(error.code if isinstance(error.code, int) else 0 if error.code is None else 1)
        if error is not None:
            import traceback

            traceback.print_exception(error)
            output.flush()
        os._exit(0 if error is None else 1)

    # ---- loading ----------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """The process as the notebook's kernel is: folder, sys.path, main, display; nothing of the user's runs yet."""
        if cwd := self.order.get("cwd"):
            try:
                os.chdir(cwd)
            except OSError as error:
                raise ArtifactError(f"{self.name} cannot run in the notebook's folder {cwd}: {error.strerror}") from error
        if self.order.get("sys_path") is not None:
            sys.path[:] = [path for path in self.order["sys_path"] if isinstance(path, str)]
        sys.argv = [""]
        self.module: types.ModuleType = execute.fresh_main()
        self.main: dict[str, Any] = vars(self.module)
        execute.register_sources(self.spec)
        modules.serve(self.spec.modules, self.store)
        output.install(self.display)
        self.scope = Scope(self.store, self.spec, self.module, self.index)
        results.set_reader(self.scope.reader)
        self._set_current()

    def _set_current(self) -> None:
        task = current.Task(
            self.spec.flow,
            self.spec.run,
            self.step.name,
            self.index,
            self.number,
            self.item,
            tuple(self.spec.tags),
            tuple(self.order.get("failures") or ()),
            self.ids,
            self.spec.origin,
            self.spec.user,
            tuple((name, value) for name, value in self.spec.project.items()),
        )
        scratch = self.order.get("scratch")
        if scratch is not None and _mentions_scratch(self.spec):
            with contextlib.suppress(FileExistsError):
                os.mkdir(scratch, 0o700)  # noqa: PTH102
        current.set_task(task, scratch)
        if self.step.method is None:
            current.give(scratch, cards=self._mentioned("card"), checkpoints=self._mentioned("checkpoint"))

    @property
    def seed(self) -> int:
        return current.task_seed(self.spec.flow, self.step.name, self.ids, self.part)

    def _load(self) -> None:
        scope, step = self.scope, self.step
        self._check_files()
        if step.options.secrets:
            from flowbook.worker import secrets

            secrets.set_secrets(step.options.secrets, os.environ)
        if step.method is not None:
            self._load_method()
            return
        captures = step.captures if self.part == "body" else self._plan_captures(step)
        scope.captures([*captures, *self.spec.setup_captures])
        scope.parameters()
        modules.seed_generators(current.task_seed(self.spec.flow, step.name, self.ids, self.part))
        execute.run_setup(self.spec, self.main)
        scope.inputs(self.order.get("inputs") or {}, self.name)
        scope.joins(self.order.get("joins") or {})
        if self.order.get("item"):
            self.item = scope.item(self.order["item"])
            self.item_repr = preview.item(self.item)
            execute.bind_item(step, self.spec, self.main, self.item)
            self._set_current()

    def _load_method(self) -> None:
        from flowbook.worker import method

        if self.order.get("item"):
            self.item = self.scope.item(self.order["item"])
            self.item_repr = preview.item(self.item)
            self._set_current()
        self.method = method.load(self)

    def _check_files(self) -> None:
        """Raises Refused unless the input files of --files are still those that were there when the run started."""
        import fnmatch

        for path, known in self.spec.files.items():
            if any(fnmatch.fnmatch(path, pattern) for pattern in self.step.options.files) and not _same_file(path, known):
                raise Refused(f"the input file {path} was changed or removed since the run started; `%flow run` takes it as it is now")

    # ---- running ----------------------------------------------------------------------------------------------------

    def _cell(self) -> None:
        code = execute.compile_cell(self.step.source, self.step.filename, self.step.options.checkpoint is not None)
        self.shown_names = code.binds
        execute.run_code(code, self.main, self.display.value)

    def _body(self, run: Callable[[], None]) -> None:
        catch = self.step.options.catch
        try:
            run()
        except BaseException as error:
            self._end_forked(error)
            self._show_figures()
            described, retry = self._error(error), self.step.options.retry
            # An error that another attempt may mend is not caught yet.
            if catch is None or not isinstance(error, Exception) or (self.number < retry.times and qualifies(retry, described)):
                raise Failure(described) from None
            self.caught = described
            if self.step.options.print_exception:
                print(self.caught["traceback"], file=sys.stderr)  # noqa: T201
            self._set_caught(catch, self._kept(error, described.get("traceback") or ""))
            return
        self._end_forked(None)
        self._show_figures()
        if catch is not None:
            self._set_caught(catch, None)

    def _set_caught(self, name: str, value: Any) -> None:
        if self.method is not None:
            if name:
                setattr(self.method.flow, name, value)
        else:
            self.main[name] = value

    def _show_figures(self) -> None:
        try:
            self.display.figures()
        except Exception as error:  # a figure that cannot be drawn; the results are whole
            print(f"a figure cannot be shown: {type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201

    def _kept(self, error: Exception, traceback: str) -> Exception:
        kept = lasting(error, self.main)
        if self.spec.compat:
            importlib.import_module("flowbook.compat").name_as_metaflow(kept, error, traceback)
        return kept

    # ---- saving -----------------------------------------------------------------------------------------------------

    def _save(self, before: Mapping[str, Any]) -> tuple[dict[str, Json], dict[str, str], dict[str, Json]]:
        saves = self._names_to_save()
        self._look_for_changes(saves)
        self._look_for_new_names(saves, before)
        artifacts, unsaved, needed = self._entries(saves, before)
        if needed:
            raise Refused("\n".join(needed))
        plans = {name: self._hosted_plan(self.spec.step(name)) for name in self.step.hosted}
        return artifacts, unsaved, plans

    def _names_to_save(self) -> list[str]:
        foreach, catch = self.step.options.foreach, self.step.options.catch
        names = [*(foreach.names if foreach else ()), *self.step.saves, *([catch] if catch else ())]
        return [name for name in dict.fromkeys(names) if name in self.main]

    def _entries(self, saves: list[str], before: Mapping[str, Any]) -> tuple[dict[str, Json], dict[str, str], list[str]]:
        """The artifacts; what was left out and why; and what must not be left out."""
        artifacts: dict[str, Json] = {}
        unsaved = {name: why for name, why in self.step.unsaved if self.main.get(name, _MISSING) is not before.get(name, _MISSING)}
        needed: list[str] = []
        for name in saves:
            try:
                artifacts[name] = codec.entry(self.store, name, self.main[name], main=self.main, keys=self.scope.key_of)
            except NotPicklable as error:
                unsaved[name] = str(error)
                if reader := self._needs(name):
                    needed.append(
                        f"`{name}` cannot be saved, but {reader}: {error}. Make it in the step that uses it, or save what it is made of."
                    )
        self._note_shares(artifacts)
        return artifacts, unsaved, needed

    def _needs(self, name: str) -> str | None:
        """Who relies on this step's `name`, in words; None if nobody does."""
        options = self.step.options
        if name in (*(options.out or ()), *options.out_add):
            return "--out names it"
        for step in self.spec.steps:
            plans = step.plan_inputs if step.name not in self.step.hosted else ()
            for given in (*step.inputs, *plans):
                # A reader that could fall back on an older value would silently get that one.
                if (
                    given.name == name
                    and self.step.name in given.makers
                    and (given.required or given.captured or given.makers[-1] != self.step.name)
                ):
                    return f"step {step.name} ({step.label}) reads it"
        return None

    def _note_shares(self, artifacts: dict[str, Json]) -> None:
        """Tell in the entries which names reach the same mutable object; loaded apart, they would no longer."""
        values = {
            name: self.main[name]
            for name, entry in artifacts.items()
            if entry["kind"] == "value" and not entry.get("definition") and not isinstance(self.main[name], (str, bytes, int, float))
        }
        if len(values) < 2:
            return
        from flowbook.store import compare

        owners: dict[int, list[str]] = {}
        for name, value in values.items():
            for reached in compare.reach(value, REACH):
                owners.setdefault(reached, []).append(name)
        for names in owners.values():
            for name in names if len(names) > 1 else ():
                artifacts[name]["shares"] = sorted({*artifacts[name].get("shares", ()), *names} - {name})
        firsts: dict[int, str] = {}
        for name, value in values.items():
            first = firsts.setdefault(id(value), name)
            if first != name:
                artifacts[name]["alias"] = first

    # ---- what the body must leave alone -----------------------------------------------------------------------------

    def _look_for_changes(self, saves: list[str]) -> None:
        levels = dict(self.step.watch)
        changed = _Changes(self)
        for name, level in self.step.watch:
            bound = self.scope.bound.get(name)
            if bound is None or not bound.is_data or name in saves or not changed(bound):
                continue
            self._refuse_change(name, level)
        self._look_at_captured(levels, changed)
        for name, bound in list(self.scope.bound.items()):
            if (bound.entry.get("shares") or bound.entry.get("alias")) and bound.place is not None:
                self._check_shared(name, bound, changed)
        self._look_at_item(levels)
        self._look_at_joined(saves)

    def _look_at_captured(self, levels: Mapping[str, str], changed: _Changes) -> None:
        """Captured data that functions keep state in. Each task has its own copy, plain cells would share it."""
        for name, bound in list(self.scope.bound.items()):
            if name in self.spec.captures and name not in levels and bound.place is None and bound.is_data and changed(bound):
                self.found.changed.append(name)
                self.found.add(
                    f"`{name}` was changed in place by a function that {self.name} ({self.step.label}) called; the change stays in this task, "
                    f"where plain cells would share it. Keep such state in a name that a step assigns."
                )

    def _refuse_change(self, name: str, level: str) -> None:
        reader = self._later_reader(name)
        text = f"`{name}` was changed in place by {self.name} ({self.step.label}), and the change is not saved"
        text += f"; {reader} reads `{name}` later" if reader else ""
        self.found.changed.append(name)
        self.found.add(f"{text}. Add `--out +{name}` to keep the change, or work on a copy.", error=level == "error")

    def _later_reader(self, name: str, maker: str | None = None) -> str | None:
        """A later step that reads the name (as `maker` made it), in words."""
        steps = self.spec.steps
        after = steps[[step.name for step in steps].index(self.step.name) + 1 :]
        for step in after:
            given: tuple[Input, ...] = (*step.inputs, *step.plan_inputs)
            if any(i.name == name and (maker is None or maker in i.makers) for i in given) or (maker is None and name in step.captures):
                return f"step {step.name} ({step.label})"
        return None

    def _check_shared(self, name: str, bound: Bound, changed: _Changes) -> None:
        """A change of one of two names that shared an object would have been seen in the other."""
        assert bound.place is not None
        others = set(bound.entry.get("shares", ())) | {bound.entry.get("alias", name)} - {name}
        for other in sorted(others):
            loaded = self.scope.bound.get(other)
            if loaded is not None and (loaded.place != bound.place or loaded.value is bound.value):
                continue  # another value of that name; or the same object, as it should be
            if not changed(bound):
                return
            reader = self._later_reader(other, bound.place[1]) if loaded is None else f"{self.name} itself"
            text = (
                f"`{name}` was changed in place by {self.name} ({self.step.label}); step {bound.place[1]} made `{name}` and `{other}` so that they "
                f"share an object, and `{other}` does not see the change here"
            )
            mend = f"Make a copy in step {bound.place[1]}, or keep both in one value."
            self.found.add(f"{text}; {reader} reads `{other}`. {mend}" if reader else f"{text}. {mend}", error=reader is not None)

    def _look_at_item(self, levels: Mapping[str, str]) -> None:
        foreach = self.step.options.foreach
        if foreach is None or not self.order.get("item") or codec.is_json(self.item):
            return
        from flowbook.store import compare

        if not compare.same(self.scope.item(self.order["item"]), self.item):
            level = next((levels[name] for name in foreach.names if levels.get(name) == "error"), "warn")
            text = f"the item of --foreach `{foreach.target}` was changed in place; `{foreach.expr}` itself does not see the change"
            self.found.add(f"{text}. Work on a copy, or collect the changed items with --join {self.step.name}.", error=level == "error")

    def _look_at_joined(self, saves: list[str]) -> None:
        """Artifacts read through a joined handle and changed, unless what changed is itself saved."""
        kept = {id(self.main[name]) for name in saves}
        for name, bound in self.scope.reader.handed:
            if bound.is_data and id(bound.value) not in kept and _Changes(self)(bound):
                self.found.add(f"`{name}` was changed in place; the change is not saved. Assign it to a name to keep it.")

    def _look_for_new_names(self, saves: list[str], before: Mapping[str, Any]) -> None:
        """Names which no reading of the body could foresee: set through `global` in a function, globals() or exec."""
        known = {*saves, *(name for name, _ in self.step.unsaved), *self.shown_names}
        levels = dict(self.step.watch)
        for name, value in self.main.items():
            if name.startswith("_") or name in known or before.get(name, _MISSING) is value or self.scope.gave(name, value):
                continue
            reader = self._later_reader(name)
            text = f"`{name}` was set by {self.name} ({self.step.label}) in a way that its text does not show, and is not saved"
            text += f"; {reader} reads `{name}` later" if reader else ""
            if name in self.scope.bound:
                self.found.changed.append(name)
            self.found.add(f"{text}. Add `--out +{name}` to save it.", error=levels.get(name) == "error" or reader is not None)

    # ---- plans ------------------------------------------------------------------------------------------------------

    def _option_place(self, step: Step) -> Place:
        option = "--foreach" if step.options.foreach else "--when"
        return Place(step.label, step.filename, execute.option_line(step, self.spec.sources, option))

    def _hosted_plan(self, step: Step) -> dict[str, Json]:
        """The plan of another step. Its failure is that step's."""
        try:
            plan = self._plan(step)
        except StoreError:
            raise
        except BaseException as error:
            self._end_forked(error)
            return {"error": self._plan_error(step, error), "key": step.plan_key}
        self._end_forked(None)
        return plan

    def _plan_error(self, step: Step, error: BaseException) -> dict[str, Json]:
        found = self.tracer.error(error, place=self._option_place(step))
        if isinstance(error, SystemExit):
            found["message"] = f"the expression called sys.exit({'' if error.code is None else repr(error.code)})"
        return found

    def _plan_captures(self, step: Step) -> list[str]:
        """The captured names which --foreach and --when of a step mention; what those need comes with them."""
        options = step.options
        words = set(re.findall(r"\w+", f"{options.foreach.expr if options.foreach else ''} {options.when or ''}"))
        read = {given.name for given in step.plan_inputs if given.captured}
        return [name for name in dict.fromkeys([*read, *step.captures]) if name in self.spec.captures and (name in read or name in words)]

    def _plan(self, step: Step) -> dict[str, Json]:
        """Evaluate --when, then --foreach if that is true, in a copy of main, so that nothing it binds is left behind."""
        modules.seed_generators(current.task_seed(self.spec.flow, step.name, self.ids, "plan"))
        namespace = dict(self.main)
        made = {given.name for given in step.plan_inputs if self.step.name in given.makers}
        for name in self._plan_captures(step):
            if step is not self.step and (name not in made or name not in self.main):
                namespace[name] = self.scope.captured(name)
        plan: dict[str, Json] = {"key": step.plan_key}
        if step.options.when is not None:
            plan["when"] = execute.holds(step, self.spec, namespace)
            if not plan["when"]:
                return plan
        foreach = step.options.foreach
        if foreach is not None:
            values = execute.items_of(step, self.spec, namespace)
            plan |= results.write_items(self.store, _bounded(step, values), name=foreach.expr, main=self.main, keys=self.scope.key_of)
        return plan

    # ---- the end ----------------------------------------------------------------------------------------------------

    def _commit(self, artifacts: dict[str, Json], unsaved: dict[str, str], plans: dict[str, Json], **more: Json) -> None:
        commit = {
            "v": 1,
            "attempt": self.number,
            "artifacts": artifacts,
            "unsaved": unsaved,
            "plans": plans,
            "item": self.item_repr,
            "warnings": [*self.scope.notes, *self.found.warnings],
            "changed": list(dict.fromkeys(self.found.changed)),
            "caught": self.caught,
            "seconds": {name: round(seconds, 6) for name, seconds in self.seconds.items()},
            "peak_mb": peak_mb(),
            "cpu_s": cpu_s(),
            **more,
        }
        output.flush()
        key = layout.commit(self.spec.flow, self.spec.run, self.step.name, self.index, self.part)
        # False: another attempt committed this task first, and its result stands.
        self._guarded(lambda: self.store.create(key, trust.sign(self.store, key, commit)))


class _Phase:
    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self._seconds, self._name = seconds, name

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *exc: object) -> None:
        self._seconds[self._name] = time.perf_counter() - self._start


class _Changes:
    """Whether a bound object is still what its entry says, asked once for each object."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._known: dict[int, bool] = {}

    def __call__(self, bound: Bound) -> bool:
        if bound.entry.get("kind") == "json":
            return False  # immutable
        if id(bound.value) not in self._known:
            from flowbook.store import compare

            scope = self._attempt.scope
            same = compare.unchanged(scope.store, bound.entry, bound.value, main=scope.main, keys=scope.key_of, resolve=scope.resolve)
            self._known[id(bound.value)] = not same
        return self._known[id(bound.value)]


def _bounded(step: Step, values: Any) -> Any:
    """The items themselves if their number is known, else at most as many as a fan-out may have. Raises PlanError for more."""
    return values if hasattr(values, "__len__") else _counted(step, values)


def _counted(step: Step, values: Any) -> Iterator[Any]:
    for count, value in enumerate(values):
        if count >= results.ITEM_LIMIT:
            raise execute.too_many(step)
        yield value


def _same_file(path: str, known: Mapping[str, Json]) -> bool:
    import hashlib

    try:
        with open(path, "rb") as file:  # noqa: PTH123
            stat = os.fstat(file.fileno())
            if stat.st_size == known["size"] and stat.st_mtime_ns == known["mtime_ns"]:
                return True
            return bool(hashlib.file_digest(file, "sha256").hexdigest() == known["sha256"])
    except OSError:
        return False


def lasting(error: Exception, main: dict[str, Any]) -> Exception:
    """The exception itself if it can be saved and loaded, else one that says the same."""
    try:
        loaded = codec.decode(codec.encode(error, main=main, previews=False).join(), main=main)
        if type(loaded) is type(error) and str(loaded) == str(error):
            return error
    except Exception:
        pass  # the stand-in is for that
    return StepFailed(f"{type(error).__name__}: {message_of(error)}")


def cpu_s() -> float:
    """CPU seconds of this process and of its children that have ended."""
    spent = os.times()
    return round(time.process_time() + spent.children_user + spent.children_system, 3)


def peak_mb() -> float:
    """The most memory this process held, in MB of 10**6 bytes."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # what getrusage counts in
    held = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)
    if _specs.forked:  # of a program started anew, getrusage also tells what its parent held
        return held
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:  # noqa: PTH123
            for line in file:
                if line.startswith("VmHWM:"):
                    return round(int(line.split()[1]) * 1024 / 1e6, 1)
    except (OSError, ValueError, IndexError):
        pass  # no Linux
    return held


__all__ = ["Attempt", "Failure", "lasting", "leave", "peak_mb", "run"]
