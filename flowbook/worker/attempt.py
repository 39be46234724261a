"""One attempt of one task: bind what the body reads, run it, save what it made, create the COMMIT.

The body runs in this process's real `__main__`, which captured functions share, so that pickling, multiprocessing and `isinstance`
behave as in a plain notebook. `Workspace` is that namespace with what the run gives it; the serial reading uses it as well.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import json
import linecache
import os
import sys
import time
import types
from pathlib import Path
from typing import Any

from flowbook.errors import ArtifactError, FlowbookError, NotPicklable
from flowbook.spec.flow import Spec, Step, from_json, task_name
from flowbook.store import codec, compare, layout, results
from flowbook.store.base import Store, open_store
from flowbook.worker import modules, output, trace
from flowbook.worker.current import current

GIVEN = ("current", "scratch")
MISSING = object()


class TaskFailed(Exception):
    """The attempt fails with this ERROR."""

    def __init__(self, error: dict[str, Any]) -> None:
        self.error = error
        super().__init__(error.get("message"))


def stable_seed(flow: str, step: str, index: tuple[int, ...]) -> int:
    """The same for a task over attempts, runs and the serial reading."""
    return int.from_bytes(hashlib.sha256(f"{flow}/{step}/{layout.task_key(index)}".encode()).digest()[:7], "big")


class Workspace:
    """`__main__` of this process, filled from a run's spec and store."""

    def __init__(self, store: Store, spec: Spec, display: output.Display) -> None:
        self.store, self.spec, self.display = store, spec, display
        self.module = types.ModuleType("__main__")
        self.main = self.module.__dict__
        self.main["__builtins__"] = builtins
        sys.modules["__main__"] = self.module
        builtins.display = display  # type: ignore[attr-defined]  # as in a notebook: there without an import
        for filename, source in spec.sources.items():
            lines = source["source"].splitlines(keepends=True)
            linecache.cache[filename] = (len(source["source"]), None, lines, filename)
        if spec.modules:
            sys.meta_path.insert(0, modules.LocalModules(store, spec.modules))
        self.bound: dict[str, Any] = {}  # captured name → the object that was bound
        self._binding: set[str] = set()
        self.reader = results.Reader(store, spec.flow, self.main, self.resolve)
        results.set_reader(self.reader)

    def resolve(self, qualname: str, key: str | None) -> Any:
        """A definition of the notebook that a value refers to and `__main__` does not hold yet."""
        root, *rest = qualname.split(".")
        if root in self._binding or root not in self.spec.captures:
            raise KeyError(qualname)
        self.bind_capture(root)
        value = self.main[root]
        for part in rest:
            value = getattr(value, part)
        return value

    def load(self, entry: dict[str, Any]) -> Any:
        return codec.load(self.store, entry, main=self.main, resolve=self.resolve)

    def bind_capture(self, name: str) -> None:
        """Bind a captured name, and first the definitions that it needs to be loaded."""
        if name in self.bound or name in self._binding or name not in self.spec.captures:
            return
        self._binding.add(name)
        try:
            info = self.spec.captures[name]
            value = self.load(info["entry"])
            if isinstance(value, type):
                value.__module__ = "__main__"
            self.main[name] = self.bound[name] = value
        finally:
            self._binding.discard(name)
        for need in info.get("needs", ()):
            self.bind_capture(need)

    def prepare(self, step: Step, index: tuple[int, ...]) -> None:
        """Seeds, what %%flowsetup needs, %%flowsetup itself, captures and parameters: the same before every task."""
        modules.seed_all(stable_seed(self.spec.flow, step.name, index))
        for name, entry in self.spec.params.items():
            self.main[name] = self.load(entry)
        for name in self.spec.setup_captures:
            self.bind_capture(name)
        for filename in self.spec.setup:
            self.execute(self.spec.sources[filename]["source"], filename)
        for name in step.captures:
            self.bind_capture(name)

    def execute(self, source: str, filename: str, show_last: bool = False) -> None:
        """Run top-level code, `await` included; the value of a last expression is shown as in a cell."""
        tree = compile(source, filename, "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        assert isinstance(tree, ast.Module)
        last = None
        if show_last and tree.body and isinstance(tree.body[-1], ast.Expr) and not _ends_quietly(source):
            last = ast.Expression(tree.body.pop().value)  # type: ignore[attr-defined]
        self._run(compile(tree, filename, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT))
        if last is not None:
            value = self._run(compile(last, filename, "eval", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT))
            if value is not None:
                output.hook_ipython(self.display)
                self.display(value)

    def _run(self, code: types.CodeType) -> Any:
        result = eval(code, self.main)
        if code.co_flags & 0x80:  # inspect.CO_COROUTINE, without importing inspect
            import asyncio

            return asyncio.run(result)
        return result


def _ends_quietly(source: str) -> bool:
    """A last `;` hides the value, as in a notebook; a comment may follow it."""
    import io
    import tokenize

    passed = {tokenize.NEWLINE, tokenize.NL, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    try:
        tokens = [t.string for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type not in passed]
    except (tokenize.TokenError, SyntaxError):
        return False
    return tokens[-1:] == [";"]


class Attempt:
    """The attempt that an ORDER asks for."""

    def __init__(self, order: dict[str, Any], frames: output.Frames) -> None:
        self.order, self.frames = order, frames
        self.store = open_store(order["store"])
        self.spec: Spec = from_json(Spec, json.loads(self.store.get(layout.spec(order["flow"], order["run"]))))
        self.step = self.spec.step(order["step"])
        self.index = tuple(order["index"])
        self.part = order["part"]
        self.space = Workspace(self.store, self.spec, output.Display(frames))
        self.main = self.space.main
        self.entries: dict[str, tuple[dict[str, Any], tuple[str, str, tuple[int, ...]] | None]] = {}
        self.item_repr: str | None = None
        self.pid = os.getpid()
        self.warnings: list[str] = []
        self.changed: list[str] = []
        self.seconds: dict[str, float] = {}

    # ---- the three phases -------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Raises TaskFailed; returns after the COMMIT exists."""
        begun = time.monotonic()
        self.frames.phase("loading")
        try:
            self._load()
        except TaskFailed:
            raise
        except (FlowbookError, OSError) as error:
            raise TaskFailed(self._said(f"its inputs cannot be loaded: {error}", type(error).__name__)) from error
        except BaseException as error:  # user code: %%flowsetup, or code that runs when a value is loaded
            raise TaskFailed(self._error(error)) from error
        loaded = time.monotonic()
        commit: dict[str, Any] = {"v": 1, "attempt": self.order["attempt"], "artifacts": {}, "unsaved": {}, "plans": {}, "caught": None}
        if self.part == "plan":
            commit["plans"][self.step.name] = self._plan(self.step)
            ran = time.monotonic()
        else:
            self.frames.phase("running")
            commit["caught"] = self._body()
            ran = time.monotonic()
            self.frames.phase("saving")
            self._save(commit)
        commit |= {"item": self.item_repr, "warnings": self.warnings, "changed": self.changed, "peak_mb": peak_mb()}
        commit["seconds"] = {
            "loading": round(loaded - begun, 4),
            "running": round(ran - loaded, 4),
            "saving": round(time.monotonic() - ran, 4),
        }
        key = layout.commit(self.spec.flow, self.spec.run, self.step.name, self.index, self.part)
        try:
            self.store.create(key, json.dumps(commit, separators=(",", ":")).encode())
        except FlowbookError as error:
            raise TaskFailed(self._said(f"its result cannot be saved: {error}", type(error).__name__)) from error
        self.frames.send({"f": "committed"})

    def _load(self) -> None:
        os.chdir(self.order["cwd"])
        sys.path[:] = [p for p in self.order["sys_path"] if isinstance(p, str)]
        self._check_files()
        name = task_name(self.step.name, self.index)
        vars(current).update(
            flow=self.spec.flow,
            run=self.spec.run,
            step=self.step.name,
            index=self.index,
            attempt=self.order["attempt"],
            retry_count=self.order["attempt"],
            seed=stable_seed(self.spec.flow, self.step.name, self.index),
            tags=self.spec.tags,
            failures=tuple(self.order.get("failures") or ()),
            task=name,
            idempotency_key=f"{self.spec.flow}/{self.spec.run}/{self.step.name}/{layout.task_key(self.index)}",
        )
        scratch = Path(self.order["scratch"])
        scratch.mkdir(parents=True, exist_ok=True)
        self.main["current"], self.main["scratch"] = current, scratch
        self.space.prepare(self.step, self.index)
        for joined, join in (self.order.get("joins") or {}).items():
            self.main[joined] = results.TaskResults.from_join(self.space.reader, joined, join)
        self._load_inputs()
        item = self.order.get("item")
        if item is not None and self.step.options.foreach is not None:
            value = results.read_item(self.store, item["blob"], item["i"], main=self.main, resolve=self.space.resolve)
            current.item = value
            self.main["__item__"] = value
            exec(compile(f"{self.step.options.foreach.target} = __item__", self.step.filename, "exec"), self.main)
            del self.main["__item__"]
            self.item_repr = _short(value)

    def _load_inputs(self) -> None:
        aliases: dict[tuple[Any, ...], Any] = {}
        for name, where in (self.order.get("inputs") or {}).items():
            place = (where["run"], where["step"], tuple(where["index"]))
            commit = results.read_commit(self.store, self.spec.flow, *place)
            entry = (commit or {}).get("artifacts", {}).get(name)
            if entry is None:
                why = (commit or {}).get("unsaved", {}).get(name, "it was not made")
                raise TaskFailed(self._said(f"`{name}`, made by {task_name(place[1], place[2])}, is not there: {why}", "ArtifactError"))
            alias = (*place, entry["alias"]) if "alias" in entry else None
            if alias is not None and alias in aliases:
                self.main[name] = aliases[alias]
            else:
                self.main[name] = self.space.load(entry)
            aliases[(*place, name)] = self.main[name]
            if alias is not None:
                aliases.setdefault(alias, self.main[name])
            self.entries[name] = (entry, place)

    def _check_files(self) -> None:
        """Input files must still be those that `%flow run` saw."""
        if not self.step.options.files:
            return
        for path, info in self.spec.files.items():
            try:
                stat = Path(path).stat()
                same = stat.st_size == info["size"] and stat.st_mtime_ns == info["mtime_ns"]
                if not same:
                    with Path(path).open("rb") as file:
                        same = hashlib.file_digest(file, "sha256").hexdigest() == info["sha256"]
            except OSError:
                same = False
            if not same:
                raise TaskFailed(
                    self._said(
                        f"the input file {path} was changed or removed since the run started; `%flow run` takes it as it is now",
                        "FileChanged",
                    )
                )

    # ---- the body ---------------------------------------------------------------------------------------------------

    def _body(self) -> dict[str, Any] | None:
        before = {n: id(v) for n, v in self.main.items()}
        self._before = before
        caught = None
        try:
            self.space.execute(self.step.source, self.step.filename, show_last=True)
        except BaseException as error:
            self._only_parent()
            if self.step.options.catch is None or not isinstance(error, Exception):
                raise TaskFailed(self._error(error)) from error
            caught = error
        self._only_parent()
        output.hook_ipython(self.space.display)
        try:
            output.show_open_figures(self.space.display)
        except Exception as error:
            self.warnings.append(f"an open figure could not be shown: {type(error).__name__}: {error}")
        if self.step.options.catch is not None:
            self.main[self.step.options.catch] = self._keepable(caught)
        return {"type": type(caught).__name__, "message": str(caught)} if caught is not None else None

    def _only_parent(self) -> None:
        """A child that os.fork made in the body comes out of it too; it must save nothing."""
        if os.getpid() != self.pid:
            os._exit(0)

    def _keepable(self, error: BaseException | None) -> Any:
        """The exception without its traceback if it survives pickling, else its text."""
        if error is None:
            return None
        error.__traceback__ = None
        try:
            encoded = codec.encode(error, main=self.main).join()
            codec.decode(encoded, main=self.main, resolve=self.space.resolve)
            return error
        except Exception:
            return f"{type(error).__name__}: {error}"

    # ---- saving -----------------------------------------------------------------------------------------------------

    def _save(self, commit: dict[str, Any]) -> None:
        present = [n for n in self.step.saves if n in self.main]
        artifacts, unsaved = commit["artifacts"], commit["unsaved"]
        required = self._required()
        refused: list[str] = []
        for name in present:
            value = self.main[name]
            try:
                artifacts[name] = codec.entry(self.store, name, value, main=self.main, keys=self._key_of)
            except NotPicklable as error:
                unsaved[name] = str(error)
                if name in required:
                    refused.append(f"{error}, but {required[name]}")
            except FlowbookError as error:
                raise TaskFailed(self._said(f"`{name}` cannot be saved: {error}", type(error).__name__)) from error
        for name, why in self.step.unsaved:
            if name in self.main:
                unsaved.setdefault(name, why)
        if refused:
            raise TaskFailed(self._said("; ".join(refused), "NotPicklable"))
        self._note_shared(artifacts)
        self._check_changes()
        self._check_rebound()
        for name in self.step.hosted:
            commit["plans"][name] = self._plan(self.spec.step(name))

    def _required(self) -> dict[str, str]:
        """Names of this step that must be saved, and who says so."""
        found: dict[str, str] = {n: f"--out names `{n}`" for n in (*(self.step.options.out or ()), *self.step.options.out_add)}
        for step in self.spec.steps:
            for made in (*step.inputs, *step.plan_inputs):
                if self.step.name in made.makers and made.required and step.name not in self.step.hosted:
                    found[made.name] = f"step {step.name} ({step.label}) reads `{made.name}`"
                elif self.step.name in made.makers and made.required and any(i.name == made.name for i in step.inputs):
                    found[made.name] = f"step {step.name} ({step.label}) reads `{made.name}`"
        return found

    def _key_of(self, qualname: str) -> str | None:
        info = self.spec.captures.get(qualname.partition(".")[0])
        return info["key"] if info else None

    def _note_shared(self, artifacts: dict[str, Any]) -> None:
        """Artifacts which reach the same mutable object: the same object twice is kept as one, deeper sharing is noted."""
        names = [n for n, e in artifacts.items() if e["kind"] == "value" and not e.get("definition")]
        if len(names) < 2:
            return
        reached = {n: compare.reach(self.main[n]) for n in names}
        for i, name in enumerate(names):
            for other in names[:i]:
                if self.main[name] is self.main[other]:
                    artifacts[name].setdefault("alias", artifacts[other].get("alias", other))
                    artifacts[other].setdefault("alias", other)
                if reached[name] & reached[other]:
                    artifacts[name].setdefault("shares", []).append(other)
                    artifacts[other].setdefault("shares", []).append(name)

    def _check_changes(self) -> None:
        """Inputs and captures that the body changed by a call and that are not saved anew."""
        levels = dict(self.step.watch)
        for name, level in levels.items():
            if name in self.step.saves:
                continue
            entry = self.entries[name][0] if name in self.entries else self.spec.captures.get(name, {}).get("entry")
            if entry is None or entry.get("kind") != "value" or entry.get("definition") or name not in self.main:
                continue
            original = self.space.bound.get(name, MISSING)
            rebound = original is not MISSING and self.main[name] is not original
            if not rebound and self._unchanged(entry, self.main[name]):
                continue
            self._changed(name, level)
        for name in self.step.saves:
            self._check_shared_change(name)

    def _changed(self, name: str, level: str) -> None:
        text = f"step {self.step.name} changed `{name}` in place, and the change is not saved: add `--out +{name}` to the step, or assign it in the body"
        if level == "error":
            why = " (each task of a fan-out has a copy of its own)" if self.step.scope else ""
            raise TaskFailed(self._said(text + why, "ChangedInPlace"))
        self.warnings.append(text)
        self.changed.append(name)

    def _unchanged(self, entry: dict[str, Any], value: Any) -> bool:
        try:
            return compare.unchanged(self.store, entry, value, main=self.main)
        except FlowbookError:
            return True

    def _check_shared_change(self, name: str) -> None:
        """`name` was loaded and is saved anew: what shared an object with it must not be read with the old content."""
        if name not in self.entries:
            return
        entry, place = self.entries[name]
        shares = entry.get("shares") or ()
        if not shares or place is None or self._unchanged(entry, self.main[name]):
            return
        for other in shares:
            read = other in self.entries or any(
                i.name == other and place[1] in i.makers for s in self.spec.steps for i in s.inputs if s.name != self.step.name
            )
            if (
                read
                and other not in self.step.saves
                and self.entries.get(other, (entry, None))[0].get("alias") != entry.get("alias", object())
            ):
                raise TaskFailed(
                    self._said(
                        f"`{name}` and `{other}` shared an object when step {place[1]} saved them; step {self.step.name} changes `{name}`, so `{other}` "
                        f"would have to change too, but they are separate now: copy one of them in step {place[1]}, or add `--out +{other}` here",
                        "SharedObject",
                    )
                )

    def _check_rebound(self) -> None:
        """Names that came into being, or were bound anew, in a way that reading the cell did not show (globals(), exec, `global`)."""
        known = {*self.step.saves, *(n for n, _ in self.step.unsaved), *GIVEN, "__builtins__", "__item__"}
        foreach = self.step.options.foreach
        known |= set(foreach.names) if foreach else set()
        for name, value in self.main.items():
            if name in known or name.startswith("__") or self._before.get(name) == id(value):
                continue
            if isinstance(value, types.ModuleType) or name in self.space.spec.setup_captures:
                continue
            if name in self.space.bound or name in self.entries:
                if name not in dict(self.step.watch):
                    self._changed(name, "warn")
                elif name not in self.changed and self.entries.get(name, ({},))[0].get("kind") != "value":
                    self._changed(name, dict(self.step.watch)[name])
            elif not name.startswith("_"):
                self.warnings.append(
                    f"`{name}` was set by code that the cell does not show, and is not saved: add `--out +{name}` to step {self.step.name}"
                )

    # ---- plans ------------------------------------------------------------------------------------------------------

    def _plan(self, step: Step) -> dict[str, Any]:
        """--when and --foreach of a step, evaluated here; what fails is that step's failure, not ours."""
        plan: dict[str, Any] = {}
        space = dict(self.main)
        option = "--when"
        try:
            if step.options.when is not None:
                plan["when"] = bool(eval(compile(step.options.when, step.filename, "eval"), space))
                if not plan["when"]:
                    return plan
            if step.options.foreach is not None:
                option = "--foreach"
                plan |= self._items(step, eval(compile(step.options.foreach.expr, step.filename, "eval"), space))
        except TaskFailed as failed:
            return {"error": failed.error}
        except (NotPicklable, ArtifactError) as error:
            return {"error": self._plan_error(step, option, str(error), type(error).__name__)}
        except BaseException as error:
            return {"error": self._plan_error(step, option, f"{type(error).__name__}: {error}", None)}
        finally:
            self._only_parent()
        return plan

    def _items(self, step: Step, values: Any) -> dict[str, Any]:
        foreach = step.options.foreach
        assert foreach is not None
        kind = type(values).__name__
        if isinstance(values, (str, bytes)):
            raise TaskFailed(
                self._plan_error(
                    step,
                    "--foreach",
                    f"the expression gives a {kind}, whose items are characters; write list(…) if that is meant",
                    "TypeError",
                )
            )
        try:
            iter(values)
        except TypeError:
            raise TaskFailed(
                self._plan_error(
                    step, "--foreach", f"the expression gives {_short(values)} of type {kind}, which cannot be listed", "TypeError"
                )
            ) from None
        return results.write_items(self.store, values, name=foreach.expr, main=self.main, keys=self._key_of)

    def _plan_error(self, step: Step, option: str, message: str, kind: str | None) -> dict[str, Any]:
        foreach = step.options.foreach
        written = f"{foreach.target} in {foreach.expr}" if option == "--foreach" and foreach else step.options.when
        return {
            "reason": "error",
            "type": kind,
            "message": f'{option} "{written}" of step {step.name} ({step.label}): {message}',
            "cell": step.label,
        }

    # ---- errors -----------------------------------------------------------------------------------------------------

    def _said(self, message: str, kind: str) -> dict[str, Any]:
        return {"reason": "error", "type": kind, "message": message, "cell": self.step.label, "item": self.item_repr}

    def _error(self, error: BaseException) -> dict[str, Any]:
        found = trace.error_of(error, self.spec.sources)
        if isinstance(error, SystemExit):
            found["message"] = f"the body called sys.exit({'' if error.code is None else error.code!r}), which ends a step as a failure"
        if isinstance(error, NameError) and error.name and error.name in {n for s in self.spec.steps for n in s.saves}:
            found["message"] += (
                f" (the flow makes `{error.name}`, but this body does not mention it where it can be seen: mention it, outside of eval and exec)"
            )
        found["item"] = self.item_repr
        return found


def peak_mb() -> float:
    """Peak resident memory of this process in MB of 10**6 bytes."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


def _short(value: Any) -> str:
    from flowbook.store.preview import text

    try:
        return str(text(value, 80))
    except Exception:
        return type(value).__name__


def main(order: dict[str, Any]) -> int:
    """Do what the order asks; the exit code of the process."""
    frames = output.Frames(order.get("frames_fd"))
    try:
        attempt = Attempt(order, frames)
        attempt.run()
    except TaskFailed as failed:
        frames.send({"f": "failed", "error": failed.error})
        return 1
    except FlowbookError as error:
        frames.send({"f": "failed", "error": {"reason": "error", "type": type(error).__name__, "message": str(error)}})
        return 1
    return 0
