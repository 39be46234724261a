"""Checkpoints of a task: what a later attempt goes on from. `save_checkpoint`, `load_checkpoint`, and `checkpoint` inside a step.

    checkpoint.loop(iterable, model=model)      yields what is left; saves and brings back what is named, and what else it changes (rest.py)
    save_checkpoint(state=…), load_checkpoint() a state of the user's own
    save_checkpoint()                           asks the loop around it for a save; see loops.py for plain `for` loops
    checkpoint.save(path), .load(), .directory  files

A loop is saved between two items, never within one, so that a retry is what an undisturbed run would have been: with the state of
the global random number generators, and with the last state of each loop that ended before it. writer.py writes, beside the body;
store/chunks.py knows what stands where. Outside a task everything here is inert.
"""

from __future__ import annotations

import contextlib
import copyreg
import dataclasses
import functools
import itertools
import json
import os
import signal
import sys
import threading
import time
import types
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from flowbook.errors import DefinitionError, NotPicklable, StoreError
from flowbook.spec.flow import Checkpoint, is_token
from flowbook.store import canon, chunks, codec, layout
from flowbook.store.chunks import Found, Manifest, Shelf
from flowbook.worker import files, loops, output, rest, restore
from flowbook.worker.loops import Site
from flowbook.worker.surroundings import CheckpointError, Key, Surroundings, Values
from flowbook.worker.writer import Save, Writer

if TYPE_CHECKING:
    from flowbook.worker.attempt import Attempt

Json = Any
References = list[dict[str, Json]]
TERMINATED = 143  # the exit code of a process that SIGTERM ended
ASKED = "asked for"  # the part of a step's key that a run which is told to run it again gives it
FREE_S, SHARE = 1.0, 0.1  # without `every`, saving may take a second and a tenth of the loop's time
_MISSING = object()
_live: Live | None = None


def save_checkpoint(state: Any = _MISSING) -> None:
    """Save `state`, whatever can be pickled, as it is now; a later attempt gets it from `load_checkpoint()`.

    Without `state`, in a loop: the loop is saved at the end of the item. Raises NotPicklable, StoreError, CheckpointError.
    """
    if _live is None:
        _nothing_live()
    elif _live.pid == os.getpid():
        with _live.guard():
            _live.save_state(state)


def load_checkpoint() -> Any:
    """The newest state that was saved by this task: what save_checkpoint(state=…) was given, else the values of its loop by name.

    None if there is none, and outside a task. Raises CheckpointError, StoreError.
    """
    return _nothing_live() if _live is None else _live.load_state()


def _nothing_live() -> None:
    """Outside a task; or in a step that has no checkpoints, and then that is told."""
    from flowbook.spec import decorators

    decorators.checkpoint._object()


# ---- around a body -------------------------------------------------------------------------------------------------------


def open(attempt: Attempt) -> None:
    """Before the body. Raises CheckpointError if an earlier attempt saved what cannot be gone on with."""
    global _live
    import builtins

    from flowbook.spec import decorators

    _live = Live(attempt)
    decorators.checkpoint._set_live(_live)
    loops.runtime.enter_live, loops.runtime.at_live, loops.runtime.enter_named_live = _live.enter, _live.at, _live.enter_named
    for name, value in {"save_checkpoint": save_checkpoint, "load_checkpoint": load_checkpoint}.items():
        vars(builtins).setdefault(name, value)  # the seed's block uses them without an import
    _live.begin()


def close(attempt: Attempt, error: Mapping[str, Json] | None) -> None:
    """After the body: the newest save is completed. A save that fails now is only told, for the results do not depend on it."""
    global _live
    from flowbook.spec import decorators

    live, _live = _live, None
    decorators.checkpoint._set_live(None)
    loops.runtime.enter_live = loops.runtime.at_live = loops.runtime.enter_named_live = None
    if live is not None and live.pid == os.getpid():
        live.end()


class Live:
    """The checkpoints of the attempt that runs: what `checkpoint.NAME` leads to."""

    def __init__(self, attempt: Attempt) -> None:
        self.pid = os.getpid()
        self._attempt = attempt
        self._options = attempt.step.options.checkpoint or Checkpoint()
        self._store = attempt.store
        self._shelf = self._shelf_of(attempt.spec.run)
        self.writer = Writer(self._store, self._shelf, attempt.number, attempt.step.options.resources.memory_mb)
        self.files = files.Files(self)
        self._found: dict[tuple[str, ...], Found | None] = {}
        self._basis: str | None = None
        self._records: list[dict[str, Json]] = []  # of the loops that ended, or were left, in this attempt
        self._count = 0  # loops that began
        self._loop: weakref.ref[Loop] | None = None
        self._state: Any = _MISSING  # given to save_checkpoint in the loop that runs
        self._loaded: dict[str, Any] | None = None  # values that the user was given
        self._told: set[str] = set()
        self._impossible = False
        self._announced: tuple[Site, types.FrameType] | None = None  # the `for` whose head is evaluated
        self._guards = 0
        self._lock = threading.RLock()
        self._terminating = False
        self._handler: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _door, ()  # in a saved state: the checkpoint of the task that loads it

    # ---- beginning and end ----

    def begin(self) -> None:
        found = self._shelf.manifests()[0] if self._options.load_policy != "none" else []
        manifest = next((each for each in found if each["kind"] in ("loop", "none")), None)
        if manifest is not None and manifest["kind"] == "none":
            raise CheckpointError(manifest["reason"])
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            self._handler = signal.signal(signal.SIGTERM, self._on_term)

    def end(self) -> None:
        self._loop = None
        with self.guard():
            try:
                self.writer.finish()
            except Exception as error:
                self.tell(f"the last checkpoint was not saved: {error}")
        if self._handler is not None:
            signal.signal(signal.SIGTERM, self._handler)
        self.files.cleanup()

    def tell(self, message: str) -> None:
        """Say something in the task's output, once."""
        if message not in self._told:
            self._told.add(message)
            print(f"checkpoint: {message}", file=sys.stderr)  # noqa: T201

    # ---- SIGTERM ----

    def _on_term(self, number: int, frame: types.FrameType | None) -> None:
        if os.getpid() != self.pid:  # a process that the body forked
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        self._terminating = True
        if not self._guards and self.active is None:
            self._leave()

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Around what must not be interrupted by SIGTERM, nor by another thread. What SIGTERM asks for is done afterwards."""
        self._guards += 1  # first: a signal that comes now finds it
        try:
            with self._lock:
                yield
        finally:
            self._guards -= 1
            if self._terminating and not self._guards and self.active is None:
                self._leave()

    def _leave(self) -> NoReturn:
        try:
            self.writer.finish()
        except Exception as error:
            self.tell(f"the last checkpoint was not saved: {error}")
        output.flush()
        os._exit(TERMINATED)

    # ---- what was saved before ----

    def _shelf_of(self, run: str) -> Shelf:
        attempt = self._attempt
        return Shelf(attempt.store, attempt.spec.flow, run, attempt.step.name, attempt.index)

    def _shelves(self) -> Iterator[Shelf]:
        """Where to look, in this order: this run, the one that it resumes, with load_policy="eager" all earlier ones."""
        if self._options.load_policy == "none":
            return
        spec = self._attempt.spec
        yield self._shelf
        if spec.origin is not None:
            yield self._shelf_of(spec.origin)
        if self._options.load_policy == "eager":
            runs = [run for run in self._store.names(f"flows/{spec.flow}") if run.isdigit()]
            earlier = [run for run in runs if not spec.run.isdigit() or int(run) < int(spec.run)]
            for run in sorted(earlier, key=int, reverse=True):
                if run != spec.origin:
                    yield self._shelf_of(run)

    def find(self, kinds: tuple[str, ...]) -> Found | None:
        """The newest checkpoint of these kinds that is whole; looked for once. Damaged ones are told."""
        if kinds not in self._found:
            self._found[kinds] = None
            for shelf in self._shelves():
                found = chunks.find(shelf, kinds)
                for trouble in found.troubles:
                    self.tell(f"{trouble}; the one before it is taken")
                if found.manifest is not None and self._fits(shelf, found.manifest):
                    self._found[kinds] = found
                    break
        return self._found[kinds]

    def _fits(self, shelf: Shelf, manifest: Manifest) -> bool:
        """Whether a checkpoint is one to go on from: of this run, or of a task of another that did not end, and had what this one has."""
        if shelf.run == self._shelf.run:
            return True
        eager = self._options.load_policy == "eager"
        if self._is_asked_for(shelf) or (self._ended(shelf) and not (eager and manifest["kind"] != "loop")):
            return False
        if eager:
            return True
        if manifest.get("basis") != self.basis:
            self.tell(f"that of run {shelf.run} is not used: parameters or inputs of the step have changed since")
            return False
        changed = next((each for each in manifest.get("loops", ()) if each.get("text", "") not in self._texts | {""}), None)
        if changed is not None:
            keep = "" if self._attempt.step.method is None else "; to go on all the same: @checkpoint(load_policy='eager')"
            self.tell(f"the loop {changed['label']} has changed since run {shelf.run}: it begins anew{keep}")
        return changed is None

    def _is_asked_for(self, shelf: Shelf) -> bool:
        """Whether this run was told to run the step again, and the other was not told so already."""
        attempt = self._attempt
        asked = attempt.step.parts.get(ASKED)
        if asked is None:
            return False
        try:
            steps = json.loads(self._store.get(layout.spec(attempt.spec.flow, shelf.run)))["steps"]
        except (StoreError, ValueError, LookupError):
            return True
        return not any(step["name"] == attempt.step.name and step.get("parts", {}).get(ASKED) == asked for step in steps)

    def _ended(self, shelf: Shelf) -> bool:
        """Whether the task has its result: its loops are done, and whoever runs it again does not want them passed over."""
        attempt = self._attempt
        return shelf.run != self._shelf.run and attempt.scope.reader.commit(shelf.run, attempt.step.name, attempt.index) is not None

    @functools.cached_property
    def _texts(self) -> set[str]:
        """Of all loops of the program as it is now."""
        spec = self._attempt.spec
        texts = [self._attempt.step.source, *(cell["source"] for cell in spec.sources.values())]
        texts += [self._store.get(layout.blob(module["blob"])).decode("utf-8", "replace") for module in spec.modules.values()]
        return {key for text in texts for key in loops.text_keys(text)}

    @property
    def basis(self) -> str:
        """What the task's results depend on beside its code: parameters, items, what the steps before made."""
        if self._basis is None:
            self._basis = canon.short_hash(repr(_basis(self._attempt)))
        return self._basis

    def manifest(self, kind: str, **fields: Json) -> dict[str, Json]:
        return {"kind": kind, "basis": self.basis, **{name: value for name, value in fields.items() if value is not None}}

    def encode(self, value: Any) -> codec.Encoded:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # iterators of itertools are pickled, as long as Python can do it
            return codec.encode(value, name="checkpoint", main=self._attempt.main, store=self._store, previews=False)

    def decode(self, data: bytearray) -> Any:
        scope = getattr(self._attempt, "scope", None)
        resolve = scope.resolve if scope is not None else None
        return codec.decode(
            data, name="checkpoint", main=self._attempt.main, resolve=resolve, store=self._store, trusted=True
        )  # by its manifest

    # ---- a state of the user's own ----

    def save_state(self, state: Any) -> None:
        loop = self.active
        if loop is not None:
            loop.due = True
            if state is not _MISSING:
                self._state = state
            return
        if state is _MISSING:
            self._say_impossible()
            return
        rng = restore.random_state()
        self.writer.save(
            Save(
                lambda: {"state": self.encode({"state": state, "rng": rng})},
                lambda bodies: self.manifest("state", state=bodies["state"]),
            )
        )

    def load_state(self) -> Any:
        self.look_up_state()
        assert self._loaded is not None
        return self._loaded.get("state")

    @property
    def state(self) -> Any:
        """The same as `load_checkpoint()`, and an empty dict where that is None."""
        found = self.load_state()
        return {} if found is None else found

    def look_up_state(self) -> None:
        if self._loaded is not None:
            return
        self._loaded = {}
        found = self.find(("state", "loop"))
        if found is None or found.manifest is None:
            return
        if "state" in found.data:
            payload = self.decode(found.data.pop("state"))
            self._loaded["state"] = payload["state"]
        elif found.manifest["loops"]:
            payload = self.decode(found.data.pop(f"loop {found.manifest['loops'][-1]['loop']}"))
            if payload.get("values") is None:
                return
            self._loaded["state"] = dict(payload["values"])
        else:
            return
        found.data.clear()
        if found.manifest["kind"] == "state":
            restore.set_random_state(payload["rng"])
        self._say_found(found, "its state is loaded")

    def gave(self, name: str, value: Any) -> bool:
        """Whether this very object was given to the user as the saved value of that name."""
        state = self._loaded.get("state") if self._loaded else None
        return isinstance(state, dict) and state.get(name, _MISSING) is value

    @property
    def state_was_asked_for(self) -> bool:
        return self._loaded is not None

    def _say_impossible(self) -> None:
        if self._attempt.step.options.checkpoint is None:
            self.tell("save_checkpoint() does nothing here: the step has no @checkpoint (in a cell: --checkpoint)")
            return
        self.mark_impossible(
            "save_checkpoint() does not stand in a loop that can be gone on with (a `for` or `while` of the step itself). "
            "Write `for … in checkpoint.loop(…, model=model)`, or save_checkpoint(state=…) and load_checkpoint()."
        )

    def mark_impossible(self, reason: str) -> None:
        """A retry shall fail with this reason: it would start over what was begun."""
        self.tell(f"{reason} A retry of this attempt will fail.")
        if not self._impossible:
            self._impossible = True
            self.writer.settle()
            self.writer.create(self.manifest("none", reason=reason))

    # ---- loops ----

    @property
    def active(self) -> Loop | None:
        loop = self._loop() if self._loop is not None else None
        return loop if loop is not None and loop.running else None

    def loop(self, iterable: Any, /, *, every: str | float | None = None, **values: Any) -> Iterator[Any]:
        """Yield the items that are left, and save the named objects, and what else the loop changes, between items: `every` 10 items or
        "30s", and after the last. If none is named, all that the loop lives in is saved.

        On a retry the objects are brought back in place to what they were, and the items that were done are passed over: a sequence
        from that place, anything else by iterating to it. Without `every` each item is saved as long as that costs next to nothing.
        Raises CheckpointError, NotPicklable, StoreError.
        """
        if self.pid != os.getpid() or self._inside():
            return iter(iterable)
        frame = sys._getframe(1)
        for name, value in values.items():
            self._check_value(name, value)
        announced, self._announced = self._announced, None
        rewritten = announced is not None and announced[1] is frame
        site = announced[0] if announced is not None and rewritten else loops.site_at(frame)
        if site.comprehension:
            raise CheckpointError(
                f"checkpoint.loop(…) in {site.label} stands in a comprehension, whose result a retry would lose. Write a `for`."
            )
        found = NamedLoop(self, frame, iterable, _every(every), values, site, rewritten)
        rest.references.set({**values, **found.rest.before})
        return self.start(found)

    def at(self, site: Site, frame: types.FrameType) -> None:
        """What rewritten code calls before the head of ``for … in checkpoint.loop(…)`` is evaluated."""
        self._announced = site, frame

    def enter_named(self, site: Site, iterable: Any, frame: types.FrameType) -> Any:
        """What it calls with the value of the head."""
        self._announced = None
        loop = self.active
        if not isinstance(loop, NamedLoop) or not loop.is_at(site, frame):
            return loops._Plain(iterable)
        return Entry(loop, frozenset(frame.f_locals), iterable)

    def _check_value(self, name: str, value: Any) -> None:
        if restore.never_changes(value):
            raise CheckpointError(
                f"checkpoint.loop(…, {name}={name}): `{name}` is a {type(value).__name__}, and checkpoint.loop cannot see by it when another one "
                f"takes its place. Leave it out: a name that the loop binds anew is saved unasked. Or keep it in a dict (state={{{name!r}: {name}}})."
            )
        if value is None or restore.in_place(value) or self.gave(name, value) or self.state_was_asked_for:
            return
        raise CheckpointError(
            f"checkpoint.loop(…, {name}={name}): a {type(value).__name__} cannot be brought back in place. Take it from the checkpoint before "
            f"the loop: `{name} = checkpoint.state.get({name!r})`, and make a new one if that is None."
        )

    def _inside(self) -> bool:
        if self.active is None:
            return False
        self.tell("a loop within a loop: the items of the outer one are what a retry goes on with")
        return True

    def enter(self, site: Site, iterable: Any, is_for: bool, frame: types.FrameType) -> Any:
        """What rewritten code calls at a loop's start."""
        if self.pid != os.getpid() or self._inside():
            return loops._Plain(iterable)
        if site.nested:
            self.tell(f"{site.label}: save_checkpoint() stands in an inner loop; the items of the outer one are what a retry goes on with")
        loop = PlainLoop(self, site, iterable, is_for, Surroundings(site, frame, self._attempt.main))
        return loop.enter(frame)

    def start(self, loop: Loop) -> Loop:
        """Begin a loop: bring it back to what was saved of it, if anything was."""
        before = self._loop() if self._loop is not None else None
        if before is not None:
            before.running = False
        loop.number, self._count = self._count, self._count + 1
        with self.guard():
            record = self._saved_record(loop)
            loop.begin(self.decode(record[1]) if record is not None else None, record[0] if record is not None else {})
        self._loop, self._state = weakref.ref(loop), _MISSING
        return loop

    def _saved_record(self, loop: Loop) -> tuple[dict[str, Json], bytearray] | None:
        found = self.find(("loop",))
        if found is None or found.manifest is None:
            return None
        record = next((each for each in found.manifest["loops"] if each["loop"] == loop.number), None)
        if record is None:
            return None
        if record["where"] != loop.where:
            raise CheckpointError(
                f"the checkpoint was made in the loop {record['label']} of {record['where']}, but now the loop {loop.label} of {loop.where} "
                f"comes in its place. Run it anew: load_policy='none', or a new run."
            )
        if record is found.manifest["loops"][-1] or record["done"]:
            done = "after its last item" if record["done"] else f"after item {record['position']}"
            self._say_found(found, f"the loop {loop.label} goes on {done}")
        self._records = [each for each in self._records if each["loop"] != loop.number]
        return record, found.data.pop(f"loop {loop.number}")  # not held: arrays may lie over it, others were copied

    def rebind(self, values: Values, same: set[Key]) -> None:
        """After a cell's names were brought back: what was loaded before the body is now these objects, and is watched for changes."""
        scope = self._attempt.scope
        for key, value in values.items():
            name = key[2]
            if key[:2] == ("global", "__main__") and key in same:
                scope._on_demand[name] = value  # its text does not bind it, and need not
                if name in scope.bound:
                    scope.bound[name] = dataclasses.replace(scope.bound[name], value=value)

    def found_here(self) -> bool:
        """Whether the checkpoint is of this run, and so of this very code."""
        found = self.find(("loop",))
        return found is not None and found.shelf is not None and found.shelf.run == self._shelf.run

    def _say_found(self, found: Found, what: str) -> None:
        assert found.manifest is not None and found.shelf is not None
        run = "" if found.shelf.run == self._shelf.run else f" of run {found.shelf.run}"
        self.tell(f"{what} (checkpoint {found.manifest['number']} of attempt {found.manifest['attempt'] + 1}{run})")

    def save_loop(self, loop: Loop, encode: Callable[[], codec.Encoded], done: bool) -> None:
        """Save a loop between two items, with the last state of those before it."""
        self.look_up_records(loop)
        state = self._state
        record = {"loop": loop.number, "where": loop.where, "label": loop.label, "text": loop.text}
        record |= {"position": loop.position, "done": done}
        before = [each for each in self._records if each["loop"] < loop.number]

        def parts() -> dict[str, codec.Encoded]:
            found = {"loop": encode()}
            return found if state is _MISSING else found | {"state": self.encode({"state": state, "rng": None})}

        def manifest(bodies: Mapping[str, Json]) -> dict[str, Json]:
            records = [*before, {**record, "body": bodies["loop"]}]
            return self.manifest("loop", loops=records, state=bodies.get("state"))

        self.writer.save(Save(parts, manifest))

    def look_up_records(self, loop: Loop) -> None:
        """The last records of the loops before this one: as they stand in the newest checkpoint, of this attempt or the one before."""
        if loop.knows_before:
            return
        loop.knows_before = True
        if loop.number == 0:
            return
        self.writer.finish()
        found = self._shelf.manifests()[0]
        newest = next((each for each in found if each["kind"] == "loop"), None)
        if newest is None and (earlier := self.find(("loop",))) is not None:
            newest = earlier.manifest
        self._records = [each for each in (newest or {}).get("loops", ()) if each["loop"] < loop.number]

    def check_term(self) -> bool:
        return self._terminating

    def leave_if_asked(self) -> None:
        if self._terminating:
            self._leave()

    # ---- files: see files.py ----

    def save(
        self,
        path: str | os.PathLike[str] | None = None,
        name: str | None = None,
        metadata: Mapping[str, Json] | None = None,
        latest: bool = True,
        storage_format: str = "files",
    ) -> dict[str, Json]:
        """Save a file or a folder (`directory` by default), and give a reference for `load`. Raises CheckpointError, StoreError."""
        with self.guard():
            return self.files.save(path, name, metadata, latest)

    def load(self, reference: Any = None, path: str | os.PathLike[str] | None = None) -> Path:
        """Write the files of a checkpoint (the newest by default) to `path`, or to `directory`. Raises CheckpointError."""
        return self.files.load(reference, path)

    def list(self, name: str | None = None, task: Any = None, attempt: int | None = None, full_namespace: bool = False) -> References:
        """References of the file checkpoints of this task (of another, of all runs), the newest first."""
        return self.files.list(name, task, attempt, full_namespace)

    @property
    def directory(self) -> str:
        """A folder of this attempt's own, with the files of the newest checkpoint in it, if there is one."""
        return self.files.directory

    @property
    def is_loaded(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return any(
            manifest["kind"] != "none" and manifest.get("latest", True) and self._fits(shelf, manifest)
            for shelf in self._shelves()
            for manifest in shelf.manifests()[0]
        )

    @property
    def info(self) -> dict[str, Json] | None:
        """The reference of the checkpoint whose files are in `directory`."""
        return self.files.info

    def cleanup(self) -> None:
        """Remove `directory`."""
        self.files.cleanup()

    @property
    def attempt(self) -> Attempt:
        return self._attempt

    @property
    def shelf(self) -> Shelf:
        return self._shelf


def _door() -> Any:
    from flowbook.spec import decorators

    return decorators.checkpoint


# ---- loops ---------------------------------------------------------------------------------------------------------------


class Loop:
    """A loop that is saved between its items. `position`: items that are done."""

    def __init__(self, live: Live, label: str, where: str, every: tuple[int | None, float | None]) -> None:
        self.live, self.label, self.where, self._every = live, label, where, every
        self.text = ""  # loops.text_key
        self.number = 0
        self.position = 0
        self.due = False
        self.running = True
        self.knows_before = False
        self._begun = False
        self._since = 0
        self._started_s = self._last_s = time.monotonic()
        self._spent_s = 0.0
        self._iterator: Iterator[Any] = iter(())
        self.bar: Any = None  # a tqdm around the iterable
        self.restored = False
        self.locals: dict[str, Any] = {}  # of the function, to be bound by its code
        self.unset: set[str] = set()

    def __iter__(self) -> Loop:
        return self

    def __next__(self) -> Any:
        frame = sys._getframe(1)
        if self._begun:
            self._item_done(frame)
            if self.bar is not None:
                self.bar.update(1)
        else:
            self.first_item()
        self._begun = True
        try:
            return next(self._iterator)
        except StopIteration:
            self._begun = False
            if self.bar is not None:
                self.bar.close()
            if self.running and self.live.pid == os.getpid():
                with self.live.guard():
                    self._save(frame, done=True)
                    self.running = False
            raise

    def begin(self, payload: dict[str, Any] | None, record: Mapping[str, Json]) -> None:
        """Before the first item, with what was saved, if anything was."""
        raise NotImplementedError

    def encoder(self, frame: types.FrameType) -> Callable[[], codec.Encoded]:
        """What pickles the state, as it is when that is called."""
        raise NotImplementedError

    def first_item(self) -> None:
        """The first item of this attempt is asked for."""

    def _item_done(self, frame: types.FrameType) -> None:
        self.position += 1
        self._since += 1
        if not self.running or os.getpid() != self.live.pid:
            return
        with self.live.guard():
            if self.live.check_term():
                self._save(frame, done=False)
                self.live.leave_if_asked()
            if self.due or self._is_time():
                self._save(frame, done=False)
        self.live.leave_if_asked()

    def _is_time(self) -> bool:
        items, seconds = self._every
        if items is not None:
            return self._since >= items
        now_s = time.monotonic()
        if seconds is not None:
            return now_s - self._last_s >= seconds
        return self._spent_s <= FREE_S + SHARE * (now_s - self._started_s)

    def _save(self, frame: types.FrameType, *, done: bool) -> None:
        started_s = time.monotonic()
        self.live.save_loop(self, self.encoder(frame), done)
        self.due, self._since, self._last_s = False, 0, time.monotonic()
        self._spent_s += self._last_s - started_s


class NamedLoop(Loop):
    """`checkpoint.loop`: saves the objects that are named, and brings them back in place; with them, unasked, what else it changes."""

    def __init__(
        self,
        live: Live,
        frame: types.FrameType,
        iterable: Any,
        every: tuple[int | None, float | None],
        values: dict[str, Any],
        site: Site,
        rewritten: bool,
    ) -> None:
        super().__init__(live, *_label(frame), every)
        self._iterable, self._values = iterable, values
        self._names = [name for name, value in values.items() if frame.f_locals.get(name, _MISSING) is value]
        self._frame = frame  # not the one that asks for items: there may be a tqdm between
        self._site, self._rewritten, self.text = site, rewritten, site.text
        method = getattr(live.attempt, "method", None)
        flow = method.flow if method is not None else None
        self.rest = rest.Rest(
            site, frame, live.attempt.main, flow, values, (self, iterable) if hasattr(type(iterable), "__next__") else (self,), rewritten
        )

    def first_item(self) -> None:
        self.rest.first_item()

    def is_at(self, site: Site, frame: types.FrameType) -> bool:
        return self._rewritten and self._site is site and self._frame is frame

    def __len__(self) -> int:
        return max(0, len(self._iterable) - self.position)

    def __length_hint__(self) -> int:
        return len(self) if hasattr(type(self._iterable), "__len__") else 0

    def begin(self, payload: dict[str, Any] | None, record: Mapping[str, Json]) -> None:
        self.position = int(record.get("position", 0))
        self._iterator = _from(self._iterable, self.position)
        around, before = self.rest.around, self.rest.before
        if around.flow is not None:
            _go_by_reference(around.flow)
        if self.rest.everything:
            around.probe(self._frame)
        self._start = restore.held(restore.inside(self._values)) | rest.held(before)
        if payload is not None:
            self.restored = True
            self._bring_back(payload, before)
            restore.set_random_state(payload["rng"])
        self.rest.begun()

    def _bring_back(self, payload: dict[str, Any], before: Values) -> None:
        saved: Mapping[str, Any] = payload["values"]
        if set(saved) != set(self._values):
            raise CheckpointError(
                f"{self.label}: the checkpoint holds {', '.join(saved) or 'nothing'}, but the loop names {', '.join(self._values) or 'nothing'}. "
                f"Name the same objects, or run it anew."
            )
        given = {name: value for name, value in self._values.items() if self.live.gave(name, value)}
        found = dict(before)
        failed = restore.bring_back({**self._values, rest.HOLD: found}, {**saved, rest.HOLD: payload["rest"]}, payload["same"])
        for name in failed:
            value = self._values[name]
            if name not in given:
                raise CheckpointError(
                    f"{self.label}: `{name}` cannot be brought back in place (it is a {type(value).__name__}, saved was a "
                    f"{type(saved[name]).__name__}). Take it from the checkpoint before the loop: `{name} = checkpoint.state.get({name!r})`."
                )
        for key, state in payload["states"].items():
            if key in before:
                before[key].load_state_dict(state)
        self.locals, self.unset = self.rest.bind(found, payload["gone"], self.live.found_here())
        if self.rest.around.in_cell:
            self.live.rebind(found, payload["as_before"])

    def encoder(self, frame: types.FrameType) -> Callable[[], codec.Encoded]:
        self._check_names()
        beside = self.rest.saved()
        if self.rest.everything and self.rest.around.note:
            self.live.tell(self.rest.around.note)
        rng = restore.random_state()
        more = {"states": beside.states, "gone": beside.gone, "as_before": beside.same, "rng": rng}

        def payload(values: Values) -> codec.Encoded:
            forms = {name: restore.saved_form(value) for name, value in self._values.items()}
            same = [*restore.unchanged(self._start, self._values), *rest.unchanged(self._start, values)]
            return self.live.encode({"values": forms, "rest": values, "same": same, **more})

        def encode() -> codec.Encoded:
            try:
                return payload(beside.values)
            except NotPicklable:
                left = self.rest.picklable(beside.values)
                for note in self.rest.notes:
                    self.live.tell(f"{self.label}: {note}")
                return payload(left)

        return encode

    def _check_names(self) -> None:
        """Refuse to save an object that is no longer the one of its name: what took its place would be lost in silence."""
        now = self._frame.f_locals
        for name in self._names:
            if now.get(name, _MISSING) is not self._values[name]:
                raise CheckpointError(
                    f"checkpoint.loop(…, {name}={name}) in {self.label}: the loop has bound `{name}` to another object, and would save the first "
                    f"one. Leave it out: a name that the loop binds anew is saved unasked. Or keep it in a dict (state={{{name!r}: {name}}})."
                )


class PlainLoop(Loop):
    """A loop of the user's own that was rewritten: saves all that it lives in. `enter` gives this object to its code as the entry."""

    def __init__(self, live: Live, site: Site, iterable: Any, is_for: bool, around: Surroundings) -> None:
        super().__init__(live, site.label, "", (1 << 62, None))
        self._site, self._iterable, self._is_for, self._around = site, iterable, is_for, around
        self.text = site.text
        self._impossible = ""
        self._frame: types.FrameType | None = None

    def enter(self, frame: types.FrameType) -> Entry:
        self.where = frame.f_code.co_qualname
        self._frame = frame
        entry = Entry(self, frozenset(frame.f_locals))
        self.live.start(self)
        self._frame = None
        return entry

    def begin(self, payload: dict[str, Any] | None, record: Mapping[str, Json]) -> None:
        frame = self._frame
        assert frame is not None
        if self._around.flow is not None:
            _go_by_reference(self._around.flow)
        self._iterator = self._own_iterator()
        self._around.probe(frame)
        self.restored = payload is not None
        if payload is None:
            return
        self.position = record["position"]
        self.locals, self.unset = self._around.bring_back(payload["plain"], frame, self.live.found_here())
        if self._around.in_cell:
            self.live.rebind(payload["plain"], payload["same"])
        if self._is_for:
            self._iterator = self._remaining(payload["iterator"])
            if self.bar is not None:
                self.bar.update(self.position)
        restore.set_random_state(payload["rng"])

    def _own_iterator(self) -> Iterator[Any]:
        """An iterator that can be saved, if there is one."""
        iterable = self._iterable
        if type(iterable).__module__.partition(".")[0] == "tqdm" and hasattr(iterable, "iterable"):
            self.bar, iterable = iterable, iterable.iterable
        found: Iterator[Any] = iter(iterable)
        if self._is_for:
            try:
                self.live.encode(found)
            except NotPicklable:
                self._impossible = (
                    f"{self._site.label}: the loop iterates over a {type(iterable).__name__}, whose place cannot be saved. Iterate over a "
                    f"list or a range, or write `for … in checkpoint.loop(…, model=model)`, which iterates to the place again."
                )
        return found

    def _remaining(self, saved: Iterator[Any]) -> Iterator[Any]:
        """The saved iterator, whose list may be one of the saved values. Of another run's, a range as it is now, from that place."""
        iterable = self.bar.iterable if self.bar is not None else self._iterable
        if isinstance(iterable, range) and not self.live.found_here():
            return iter(iterable[self.position :])
        return saved

    def _save(self, frame: types.FrameType, *, done: bool) -> None:
        if self._impossible:
            if not done or self.due:
                self.live.mark_impossible(self._impossible)
                self.due = False
            return
        super()._save(frame, done=done)

    def encoder(self, frame: types.FrameType) -> Callable[[], codec.Encoded]:
        values = self._around.saved(frame)
        if self._around.note:
            self.live.tell(self._around.note)
        rng = restore.random_state()
        iterator = self._iterator if self._is_for else None

        same = self._around.same(values)

        def payload(values: Values) -> codec.Encoded:
            return self.live.encode({"plain": values, "iterator": iterator, "rng": rng, "same": same})

        def encode() -> codec.Encoded:
            try:
                return payload(values)
            except NotPicklable:
                return payload(self._around.without_unpicklable(values))

        return encode


class Entry:
    """What rewritten code asks at a loop's start. Holds the loop until its items are taken: then the `for` does, and a `break` ends it."""

    def __init__(self, loop: Loop, bound: frozenset[str], items: Any = None) -> None:
        self._loop: Loop | None = loop
        self._bound, self._items = bound, items

    @property
    def restored(self) -> bool:
        return self._loop is not None and self._loop.restored

    def has(self, name: str) -> bool:
        return self._loop is not None and name in self._loop.locals

    def take(self, name: str) -> Any:
        assert self._loop is not None
        return self._loop.locals[name]

    def gone(self, name: str) -> bool:
        return self._loop is not None and name in self._loop.unset and name in self._bound

    def items(self) -> Any:
        (loop, items), self._loop, self._items = (self._loop, self._items), None, None
        assert loop is not None
        loop.locals = {}
        return loop if items is None else items


def _go_by_reference(flow: Any) -> None:
    """In saved states, let the flow's instance be that of the task which loads them."""

    def reduce(instance: Any) -> Any:
        return (_present_flow, ()) if instance is flow else object.__reduce_ex__(instance, 5)

    copyreg.pickle(type(flow), reduce)


def _present_flow() -> Any:
    assert _live is not None
    method = getattr(_live.attempt, "method", None)
    if method is None:
        raise CheckpointError("this checkpoint was saved in a method of a flow, and is loaded where there is none")
    return method.flow


def _from(iterable: Any, position: int) -> Iterator[Any]:
    """The items of `iterable` from a position on."""
    if position and isinstance(iterable, (range, list, tuple)):
        return iter(iterable[position:]) if not isinstance(iterable, list) else _of_list(iterable, position)
    found: Iterator[Any] = iter(iterable)
    next(itertools.islice(found, position, position), None)
    return found


def _of_list(items: list[Any], position: int) -> Iterator[Any]:
    """As `for` does it: a list that grows meanwhile is followed to its end."""
    while position < len(items):
        yield items[position]
        position += 1


def _every(every: str | float | None) -> tuple[int | None, float | None]:
    """(items, seconds)"""
    if every is None:
        return None, None
    if isinstance(every, str):
        from flowbook.spec.options import parse_duration  # slow to import

        try:
            return None, parse_duration(every)
        except DefinitionError as error:
            raise CheckpointError(f"checkpoint.loop(…, every={every!r}): {error.findings[0].what}. Write a time such as '30s'.") from None
    if isinstance(every, int) and not isinstance(every, bool) and every >= 1:
        return every, None
    raise CheckpointError(f"checkpoint.loop(…, every={every!r}): write a number of items such as 10, or a time such as '30s'.")


def _label(frame: types.FrameType) -> tuple[str, str]:
    return f"{frame.f_code.co_filename.rpartition('/')[2]}, line {frame.f_lineno}", frame.f_code.co_qualname


def _basis(attempt: Attempt) -> list[Any]:
    """What tells whether another run's task of the same place had the same to work with."""
    order, spec = attempt.order, attempt.spec
    found: list[Any] = [list(attempt.ids), sorted((name, _identity(entry)) for name, entry in spec.params.items())]
    reader = attempt.scope.reader
    for name, where in sorted((order.get("inputs") or {}).items()):
        if is_token(name):
            continue
        place = where["step"], tuple(where["index"])
        if attempt.step.method is not None:
            entry = reader.visible(spec.flow, where["run"], *place, name)
        else:
            entry = ((reader.commit(where["run"], *place) or {}).get("artifacts") or {}).get(name)
        found.append((name, _identity(entry)))
    for step, join in sorted((order.get("joins") or {}).items()):
        index = tuple(join["index"])
        tasks = [index] if join["count"] is None else [(*index, i) for i in range(join["count"])]
        for task in tasks:
            artifacts = (reader.commit(join["run"], step, task) or {}).get("artifacts") or {}
            found.append((step, task, sorted((name, _identity(entry)) for name, entry in artifacts.items())))
    return found


def _identity(entry: Mapping[str, Json] | None) -> str:
    """What the value of an entry is, as far as the entry tells."""
    if entry is None:
        return ""
    return repr(next((entry[name] for name in ("key", "blob", "inline", "json", "module") if name in entry), ""))


__all__ = ["CheckpointError", "Live", "close", "load_checkpoint", "open", "save_checkpoint"]
