"""Exceptions of user code as ERROR (docs/internals.md): a traceback in terms of cells, without a line of our own code."""

from __future__ import annotations

import linecache
import os
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flowbook.errors import FlowbookError

WIDTH = 75
CONTEXT = 2  # lines shown before and after
TEXT_LIMIT = 100_000  # characters of a traceback
MESSAGE_LIMIT = 10_000
_LIBRARY_RUN = 4  # so many frames of libraries in a row are shown; of more, the first and the last two
_GROUP = 15  # so many exceptions of a group are shown

_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep  # noqa: PTH100, PTH120 (code filenames are strings)
_STDLIB = os.path.dirname(os.__file__) + os.sep  # noqa: PTH120

_CAUSE = "The above exception was the direct cause of the following exception:"
_CONTEXT = "During handling of the above exception, another exception occurred:"


@dataclass(frozen=True)
class Place:
    """Where an error counts as raised if no cell is on its stack."""

    label: str
    filename: str
    line: int | None = None


@dataclass(frozen=True)
class _Frame:
    filename: str
    line: int
    name: str


class Tracer:
    """Describes exceptions; `sources` are Spec.sources, which tell the files of code that are cells."""

    def __init__(self, sources: Mapping[str, Any]) -> None:
        self._sources = sources

    def error(self, error: BaseException, *, item: str | None = None, place: Place | None = None) -> dict[str, Any]:
        """ERROR of an exception. `place` stands in where no cell is on the stack."""
        found: dict[str, Any] = {"reason": "error", "type": type(error).__name__, "message": message_of(error)}
        filename, line, cell = self._where(error, place)
        if cell:
            found["cell"] = cell
        if line is not None:
            found |= {"line": line, "source_line": linecache.getline(filename, line).strip()}
        found["traceback"] = self.text(error)
        return found if item is None else found | {"item": item}

    def _where(self, error: BaseException, place: Place | None) -> tuple[str, int | None, str]:
        """File, line and label of the innermost cell."""
        frames = [frame for frame in self._frames(error) if frame.filename in self._sources]
        if isinstance(error, SyntaxError) and error.filename is not None and error.filename in self._sources:
            return error.filename, error.lineno, self._sources[error.filename]["label"]
        if frames:
            return frames[-1].filename, frames[-1].line, self._sources[frames[-1].filename]["label"]
        return (place.filename, place.line, place.label) if place else ("", None, "")

    def text(self, error: BaseException) -> str:
        """The traceback, ready to print."""
        text = f"{'-' * WIDTH}\n" + "\n".join(self._chain(error, set()))
        return text if len(text) <= TEXT_LIMIT else f"{text[: TEXT_LIMIT // 2]}\n…\n{text[-TEXT_LIMIT // 2 :]}"

    def _chain(self, error: BaseException, seen: set[int]) -> Iterator[str]:
        seen.add(id(error))
        before, link = error.__cause__, _CAUSE
        if before is None and not error.__suppress_context__:
            before, link = error.__context__, _CONTEXT
        ours = isinstance(error, FlowbookError)  # it says itself what was wrong; only the user's own code behind it is of interest
        if before is not None and id(before) not in seen and not (ours and not list(self._frames(before))):
            yield from self._chain(before, seen)
            yield from ("", link, "")
        yield from self._one(error, seen)

    def _one(self, error: BaseException, seen: set[int]) -> Iterator[str]:
        name = type(error).__name__
        frames = list(self._frames(error))
        if frames:
            yield name + "Traceback (most recent call last)".rjust(WIDTH - len(name))
        for part in self._stack(frames):
            yield from (*part, "")
        yield from _only(error)
        if isinstance(error, BaseExceptionGroup):
            count = len(error.exceptions)
            for i, inner in enumerate(error.exceptions[:_GROUP], 1):
                yield f"  ---------------- {i} of {count} ----------------"
                yield from (f"  {line}" for line in "\n".join(self._chain(inner, seen)).split("\n"))

    def _frames(self, error: BaseException) -> Iterator[_Frame]:
        """Frames from the first that is the user's on, without ours."""
        found = [_Frame(tb.tb_frame.f_code.co_filename, tb.tb_lineno, tb.tb_frame.f_code.co_qualname) for tb in _walk(error.__traceback__)]
        first = next((i for i, frame in enumerate(found) if frame.filename in self._sources), None)
        if first is None:  # an error of loading or saving: nothing that led there is the user's
            first = next((i for i, frame in enumerate(found) if self._is_users(frame)), len(found))
        return (frame for frame in found[first:] if not frame.filename.startswith((_OURS, "<frozen ")))

    def _is_users(self, frame: _Frame) -> bool:
        if frame.filename in self._sources:
            return True
        packages = f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}"
        return not frame.filename.startswith((_OURS, _STDLIB, "<")) and not any(part in frame.filename for part in packages)

    def _stack(self, frames: list[_Frame]) -> Iterator[list[str]]:
        i = 0
        while i < len(frames):
            size, times = _repetition(frames, i)
            if times > 3:
                for frame in frames[i : i + size]:
                    yield self._frame(frame)
                yield [
                    f"    … the last {size} frames {times - 1:,} times more"
                    if size > 1
                    else f"    … the same frame {times - 1:,} times more"
                ]
                i += size * times
                continue
            end = i
            while end < len(frames) and not self._is_users(frames[end]):
                end += 1
            if end - i > _LIBRARY_RUN:
                yield self._frame(frames[i])
                yield [f"    … {end - i - 3} more frames in libraries"]
                i = end - 2
            yield self._frame(frames[i])
            i += 1

    def _frame(self, frame: _Frame) -> list[str]:
        cell = self._sources.get(frame.filename)
        if cell is not None:
            head = f"{cell['label']}, line {frame.line}" + (f", in {frame.name}" if frame.name != "<module>" else "")
        else:
            head = f"File {frame.filename}:{frame.line}" + (f", in {frame.name}" if frame.name != "<module>" else "")
        return [head, *_context(frame, CONTEXT if self._is_users(frame) else 0)]


def _walk(tb: types.TracebackType | None) -> Iterator[types.TracebackType]:
    while tb is not None:
        yield tb
        tb = tb.tb_next


def _repetition(frames: list[_Frame], start: int) -> tuple[int, int]:
    """How many frames repeat from `start` on, and how often in all: a recursion is shown once."""
    for size in (1, 2, 3):
        times = 1
        while frames[start + size * times : start + size * (times + 1)] == frames[start : start + size]:
            times += 1
        if times > 3:
            return size, times
    return 1, 1


def _context(frame: _Frame, around: int) -> list[str]:
    numbered = [(n, linecache.getline(frame.filename, n)) for n in range(max(frame.line - around, 1), frame.line + around + 1)]
    while numbered and not numbered[-1][1].strip():
        numbered.pop()
    while numbered and not numbered[0][1].strip():
        numbered.pop(0)
    return [f"{_arrow(n) if n == frame.line else f'{n:>7}'} {line.rstrip()}".rstrip() for n, line in numbered]


def _arrow(line: int) -> str:
    """``----> 4``, seven characters wide."""
    return f"{'-' * max(5 - len(str(line)), 1)}> {line}"


def _only(error: BaseException) -> list[str]:
    """The lines below the stack: type and message, notes, and the text of a SyntaxError."""
    import traceback

    exception = traceback.TracebackException(type(error), error, error.__traceback__, limit=0, lookup_lines=False)
    lines = "".join(exception.format_exception_only())[: 2 * MESSAGE_LIMIT].rstrip("\n").split("\n")
    name, qualified = type(error).__name__, f"{type(error).__module__}.{type(error).__qualname__}"
    return [name + line[len(qualified) :] if line.startswith(qualified) else line for line in lines]  # as notebooks write it


def bases_of(error: BaseException) -> list[str]:
    """The names of its class and of all base classes, bare and with their module: what retries may name."""
    bases = [base for base in type(error).__mro__ if base is not object]
    return [name for base in bases for name in (base.__name__, f"{base.__module__}.{base.__qualname__}")]


def message_of(error: BaseException) -> str:
    """What the exception says; never raises."""
    try:
        text = str(error)
    except Exception as failure:
        text = f"(its message cannot be shown: {type(failure).__name__})"
    return text if len(text) <= MESSAGE_LIMIT else f"{text[:MESSAGE_LIMIT]}…"
