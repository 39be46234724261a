"""A user's exception as a notebook shows it: the frames of cells and files, none of ours, with the line and its neighbours."""

from __future__ import annotations

import linecache
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

OURS = str(Path(__file__).resolve().parent.parent)
AROUND = 2


def error_of(error: BaseException, sources: dict[str, Any], reason: str = "error") -> dict[str, Any]:
    """The ERROR of docs/internals.md for an exception of user code."""
    cell, line, source_line = _place(error, sources)
    return {
        "reason": reason,
        "type": type(error).__name__,
        "message": _message(error),
        "cell": cell,
        "line": line,
        "source_line": source_line,
        "traceback": text_of(error, sources),
    }


def text_of(error: BaseException, sources: dict[str, Any]) -> str:
    """The whole chain, oldest first, as IPython writes it."""
    parts: list[str] = []
    seen: set[int] = set()

    def one(exc: BaseException) -> None:
        if id(exc) in seen:
            return
        seen.add(id(exc))
        if exc.__cause__ is not None:
            one(exc.__cause__)
            parts.append("\nThe above exception was the direct cause of the following exception:\n")
        elif exc.__context__ is not None and not exc.__suppress_context__:
            one(exc.__context__)
            parts.append("\nDuring handling of the above exception, another exception occurred:\n")
        if isinstance(exc, BaseExceptionGroup):
            parts.append("".join(traceback.format_exception(exc)))
            return
        parts.append(_heading(type(exc).__name__))
        parts.extend(_frame(frame, number, sources) for frame, number in _frames(exc.__traceback__))
        if isinstance(exc, SyntaxError):
            parts.append("".join(traceback.format_exception_only(exc)).rstrip())
        else:
            parts.append("".join(traceback.format_exception_only(exc)).rstrip() or type(exc).__name__)

    one(error)
    return "\n".join(parts)


def _heading(name: str) -> str:
    return f"{'-' * 75}\n{name:<42}Traceback (most recent call last)"


def _frames(tb: TracebackType | None) -> list[tuple[Any, int]]:
    """User frames: ours are left out at both ends, and importlib's."""
    found = []
    while tb is not None:
        name = tb.tb_frame.f_code.co_filename
        if not name.startswith(OURS) and "importlib._bootstrap" not in name:
            found.append((tb.tb_frame, tb.tb_lineno))
        tb = tb.tb_next
    if len(found) > 30:
        return [*found[:10], *found[-20:]]
    return found


def _frame(frame: Any, number: int, sources: dict[str, Any]) -> str:
    code = frame.f_code
    source = sources.get(code.co_filename)
    where = f"{source['label']}, line {number}" if source else f"File {code.co_filename}:{number}"
    called = "" if code.co_name == "<module>" else f", in {code.co_name}"
    lines = source["source"].splitlines() if source else linecache.getlines(code.co_filename)
    shown = []
    for n in range(max(1, number - AROUND), min(len(lines), number + AROUND) + 1):
        text = lines[n - 1].rstrip("\n")
        shown.append(f"----> {n} {text}" if n == number else f"      {n} {text}")
    return "\n".join([where + called, *shown, ""])


def _place(error: BaseException, sources: dict[str, Any]) -> tuple[str | None, int | None, str | None]:
    """The innermost line that stands in a cell."""
    if isinstance(error, SyntaxError) and error.filename in sources:
        return sources[error.filename]["label"], error.lineno, (error.text or "").strip()
    for frame, number in reversed(_frames(error.__traceback__)):
        source = sources.get(frame.f_code.co_filename)
        if source:
            lines = source["source"].splitlines()
            return source["label"], number, lines[number - 1].strip() if number <= len(lines) else None
    return None, None, None


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return f"<the message of {type(error).__name__} cannot be shown>"
