"""What a `checkpoint.loop` changes beside the objects that it names: found, saved and brought back unasked.

    nothing is named     all that the loop lives in is saved, as of a plain loop with `save_checkpoint()` (surroundings.py)
    something is named   what of it is no longer what the code before the loop has made: bound anew, or changed in itself (Watch)

Both hold for `self`, the locals and the globals that the loop's code reaches by name. Names of a function can be bound again only
where its text was rewritten (loops.py); where it was not, a save that would need that is refused. Objects with a `state_dict` are
saved by it. Knows nothing of items, files or the store.
"""

from __future__ import annotations

import collections
import copyreg
import operator
import types
import weakref
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from flowbook.errors import NotPicklable
from flowbook.spec.flowspec import FlowSpec
from flowbook.store import codec
from flowbook.worker import restore
from flowbook.worker.loops import Site
from flowbook.worker.surroundings import CheckpointError, Key, Surroundings, Values, shown

HOLD = ""  # the name under which the rest stands among the named values: no name of Python
REACH = 10_000  # objects looked at of each value
LONG = 1_000  # parts of so long a list are held, for it is compared faster
ARRAY_BYTES = 4 << 20  # arrays up to this size are compared
_LEFT_ALONE = (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType, type)
_ATOMS = (int, float, complex, str, bytes, type(None))
_SKIPPED = (*_ATOMS, *_LEFT_ALONE)
Look = tuple[Any, tuple[Any, ...]]  # what an object is beside the objects in it; those


@dataclass
class Saved:
    """One moment: `values` are pickled, `states` are state_dicts of objects that are still the ones of the start."""

    values: Values = field(default_factory=dict)
    states: Values = field(default_factory=dict)
    gone: set[Key] = field(default_factory=set)  # bound before the loop, and no longer
    same: set[Key] = field(default_factory=set)  # names that hold the object which they held before the loop


class Rest:
    """That of one loop. `frame` is the loop's; `rewritten`: its local names can be bound. `apart`: objects that are no part of it."""

    def __init__(
        self,
        site: Site,
        frame: types.FrameType,
        main: dict[str, Any],
        flow: FlowSpec | None,
        named: Mapping[str, Any],
        apart: Iterable[object],
        rewritten: bool,
    ) -> None:
        self.around = Surroundings(site, frame, main, flow)
        self.around.apart = {id(each) for each in apart}
        self._frame, self._main = frame, main
        self.around.call = "checkpoint.loop(…)"
        self.binds = rewritten or self.around.in_cell
        self.everything = not named and self.binds
        self._named = {id(value) for value in named.values()}
        self.before = self._values()  # dropped once the loop has begun
        self._tokens = {key: _token(value) for key, value in self.before.items()}
        self._watch = Watch({key: value for key, value in self.before.items() if not self.everything}, self._apart)
        self._unsaved: set[Key] = set()  # that cannot be pickled, and are what the code before the loop makes
        self.notes: list[str] = []
        self._rewritten = rewritten
        self._begun: dict[Key, Any] = {}
        self._late: tuple[dict[Key, Any], Watch] = {}, Watch({}, set())  # bound between checkpoint.loop(…) and the first item

    @property
    def _apart(self) -> set[int]:
        return self._named | self.around.apart | ({id(self.around.flow)} if self.around.flow is not None else set())

    def _values(self) -> Values:
        values = self.around.values(self._frame)
        found = {key: value for key, value in values.items() if id(value) not in self.around.apart}
        return found if self.everything else {key: value for key, value in found.items() if _counts(value)}

    def _is_as_before(self, key: Key, value: Any) -> bool:
        return key in self._tokens and _of(self._tokens[key]) is value

    def begun(self) -> None:
        """All is brought back; the first item may be asked for now, or after other statements."""
        self.before = {}
        if not self._rewritten:
            self._begun = {key: _token(value) for key, value in self._values().items()}

    def first_item(self) -> None:
        if self._rewritten:
            return
        late = {key: value for key, value in self._values().items() if _of(self._begun.get(key)) is not value}
        late = {key: value for key, value in late.items() if _counts(value) and not self.around.is_dead(key) and not self._wraps(value)}
        self._late = {key: _token(value) for key, value in late.items()}, Watch(late, self._apart)
        self._begun = {}

    def _wraps(self, value: Any) -> bool:
        """Whether it is a progress bar around the loop: it counts anew."""
        return any(id(part) in self.around.apart for part in _content(value)[1])

    # ---- saving ----

    def saved(self) -> Saved:
        """As it is now. Raises CheckpointError for what could not be brought back."""
        now = self._values()
        result = Saved(gone={key for key in self._tokens if key not in now})
        result.same = {key for key, value in now.items() if self._is_as_before(key, value)}
        values = self.around.saved(self._frame) if self.everything else self._changed(now, result.same)
        for key, value in values.items():
            if id(value) in self._named | self.around.apart and key in result.same:
                continue
            if key in result.same and restore.has_state_dict(value):
                result.states[key] = value.state_dict()
            else:
                result.values[key] = value
        self._check_late(now)
        if not self.binds:
            self._check_bound(result)
        return result

    def _check_late(self, now: Values) -> None:
        tokens, watch = self._late
        same = {key: now[key] for key, token in tokens.items() if key in now and _of(token) is now[key]}
        for key in [*(key for key in tokens if key not in same), *watch.changed(same)]:
            raise CheckpointError(
                f"checkpoint.loop(…) in {self.around.site.label}: the loop changes `{shown(key)}`, which is made after checkpoint.loop(…) is called, "
                f"so that a retry would make it anew. Write `for … in checkpoint.loop(…)`, with nothing between."
            )

    def _changed(self, now: Values, same: set[Key]) -> Values:
        changed = self._watch.changed({key: now[key] for key in same})
        left = {key: value for key, value in now.items() if (key in changed or key not in same) and key not in self._unsaved}
        return {key: value for key, value in left.items() if not self.around.is_dead(key)}

    def picklable(self, values: Values) -> Values:
        """Those that can be pickled, where not all can. Raises CheckpointError for others that the loop has put in place of something."""
        if self.everything:
            return self.around.without_unpicklable(values)
        found = dict(values)
        for key, value in values.items():
            try:
                codec.dump(value, main=self._main)
            except NotPicklable as error:
                del found[key]
                if self._is_as_before(key, value):
                    self._unsaved.add(key)
                    self.notes.append(
                        f"`{shown(key)}` was changed by the loop and cannot be saved; a retry has what the code before the loop makes of it"
                    )
                elif key in self._tokens:
                    raise CheckpointError(
                        f"checkpoint.loop(…) in {self.around.site.label}: the loop has bound `{shown(key)}` to another object, which cannot "
                        f"be pickled ({error.cause}). Make it anew in each item before it is read."
                    ) from None
        return found

    def _check_bound(self, result: Saved) -> None:
        """Names of a function whose text was not rewritten: nobody could bind them again."""
        for key, value in [*result.values.items(), *((key, None) for key in result.gone)]:
            if key[0] not in ("local", "cell") or key not in self._tokens or (key in result.same and restore.in_place(value)):
                continue
            raise CheckpointError(
                f"checkpoint.loop(…) in {self.around.site.label}: the loop changes `{key[2]}`, which a retry could not bring back, for the loop "
                f"stands in a function that the step calls, or checkpoint.loop not in the head of a `for`. Keep `{key[2]}` in a dict that is "
                f"named (checkpoint.loop(…, state=state)), or write `for … in checkpoint.loop(…)` in the step itself."
            )
        result.values = {key: value for key, value in result.values.items() if key[0] not in ("local", "cell") or key in self._tokens}

    # ---- bringing back ----

    def bind(self, values: Values, gone: Iterable[Key], same_code: bool) -> tuple[dict[str, Any], set[str]]:
        """Bind what stands outside the frame; gives its locals to bind, and those to delete."""
        return self.around.bind(values, set(gone) if same_code else set())


class Watch:
    """Whether values are still what they were, seen without pickling: which objects they lead to, and what is in small arrays."""

    def __init__(self, values: Values, apart: set[int]) -> None:
        self._apart = apart
        self._before = {key: list(self._look(value)) for key, value in values.items()}

    def changed(self, values: Values) -> set[Key]:
        return {key for key, value in values.items() if not self._is_same(self._before.get(key, []), value)}

    def _is_same(self, before: list[Look], value: Any) -> bool:
        now = list(self._look(value))
        return len(now) == len(before) and all(_alike(*each) for each in zip(before, now, strict=True))

    def _look(self, value: Any) -> Iterator[Look]:
        """For each object that the value leads to: its content, objects as tokens."""
        queue, seen = collections.deque([value]), {id(value)}
        while queue and len(seen) <= REACH:
            item = queue.popleft()
            if isinstance(item, _SKIPPED) or id(item) in self._apart or not _counts(item):
                continue
            content, parts = _content(item)
            yield content, tuple(parts if len(parts) > LONG else map(_token, parts))
            for part in parts[:REACH]:
                if not isinstance(part, _ATOMS) and id(part) not in seen and len(seen) <= REACH:
                    seen.add(id(part))
                    queue.append(part)


def _content(item: Any) -> tuple[Any, list[Any]]:
    """What an object is beside the objects in it, to be compared; and those."""
    parts: list[Any] = []
    content: Any = None
    if isinstance(item, dict):
        parts += [*item.keys(), *item.values()]
    elif isinstance(item, (list, tuple, collections.deque)):
        parts += item
    elif isinstance(item, (set, frozenset)):
        content = frozenset(item)
    elif isinstance(item, (bytearray, memoryview)):
        content = zlib.crc32(item)
    elif restore.is_array(item):
        content = (item.shape, zlib.crc32(item.tobytes()) if item.nbytes <= ARRAY_BYTES and not item.dtype.hasobject else 0)
    elif restore.is_generator(item):
        content = repr(item.bit_generator.state if hasattr(item, "bit_generator") else item.__reduce__()[-1])
    elif type(item).__module__.partition(".")[0] == "torch":
        content = getattr(item, "_version", None)  # of a tensor: counts its changes
    if isinstance(getattr(item, "__dict__", None), dict):
        for name, part in vars(item).items():
            parts += (name, part)
    parts += [getattr(item, name, None) for name in copyreg._slotnames(type(item))]  # type: ignore[attr-defined]
    return content, parts


def _counts(value: Any) -> bool:
    return not isinstance(value, _LEFT_ALONE) and not type(value).__module__.startswith("flowbook")


def _token(value: Any) -> Any:
    """What tells an object from others, without keeping it alive where that can be."""
    if isinstance(value, _ATOMS):
        return value
    try:
        return weakref.ref(value)
    except TypeError:
        return value


def _of(token: Any) -> Any:
    return token() if isinstance(token, weakref.ref) else token


def _alike(before: Look, now: Look) -> bool:
    if len(before[1]) != len(now[1]) or before[0] != now[0]:
        return False
    if len(now[1]) > LONG:
        return all(map(operator.is_, before[1], now[1]))
    return all(_of(a) is _of(b) and not (isinstance(a, weakref.ref) and a() is None) for a, b in zip(before[1], now[1], strict=True))


# ---- references ------------------------------------------------------------------------------------------------------------


class References:
    """Objects with a state_dict are brought back in place; wherever else a saved value holds one, it holds that one again."""

    def __init__(self) -> None:
        self._names: dict[int, Any] = {}
        self._objects: dict[Any, Any] = {}

    def set(self, objects: Mapping[Any, Any]) -> None:
        """`objects`: name → object, of the loop that begins."""
        self._objects = {name: each for name, each in objects.items() if restore.has_state_dict(each)}
        self._names = {id(each): name for name, each in self._objects.items()}
        for each in self._objects.values():
            copyreg.pickle(type(each), _reduce)  # type: ignore[arg-type]

    def reduce(self, value: Any) -> Any:
        if id(value) in self._names:
            return _referred, (self._names[id(value)],)
        return value.__reduce_ex__(5)

    def referred(self, name: Any) -> Any:
        return self._objects[name] if name in self._objects else Elsewhere(name)


class Elsewhere:
    """Stands for an object that is there only once its loop begins."""

    def __init__(self, name: Any) -> None:
        self.name = name


references = References()


def _reduce(value: Any) -> Any:
    return references.reduce(value)


def _referred(name: Any) -> Any:
    return references.referred(name)


# ---- paths -----------------------------------------------------------------------------------------------------------------


def held(values: Values) -> dict[restore.Path, Any]:
    """As restore.held, of each value by itself: an object that two of them lead to has a path from each."""
    return {path: token for found in _each(values) for path, token in restore.held(restore.inside(found)).items()}


def unchanged(before: dict[restore.Path, Any], values: Values) -> list[tuple[restore.Path, Any]]:
    """As restore.unchanged."""
    return [pair for found in _each(values) for pair in restore.unchanged(before, found)]


def _each(values: Values) -> Iterator[dict[str, Any]]:
    return ({HOLD: {key: value}} for key, value in values.items())


__all__ = ["HOLD", "Rest", "Saved", "Watch", "held", "references", "unchanged"]
