"""How the command line writes: colours where a terminal wants them, errors, durations, nearest spellings."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from typing import TextIO

from flowbook.errors import DefinitionError, FlowbookError

CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "blue": "34", "magenta": "35", "cyan": "36"}
STEP_COLOURS = ("cyan", "magenta", "blue", "yellow", "green")
_COLOUR = r"\x1b\[[0-9;]*m"
_SEQUENCE = r"\x1b(?:\[[0-9;?<=>]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])"
_CONTROL = r"[\x00-\x08\x0b-\x1f\x7f-\x9f]"


def has_colours(stream: TextIO) -> bool:
    """Whether colours are welcome: a terminal that is not dumb, and nobody has set NO_COLOR."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def one_place(one: TextIO, other: TextIO) -> bool:
    """Whether both are read in one place: a terminal, a file, a pipe."""
    try:
        return os.path.samestat(os.fstat(one.fileno()), os.fstat(other.fileno()))
    except (OSError, ValueError):  # closed, or not of the system
        return False


def styled(text: str, style: str, colours: bool) -> str:
    """``styled("train", "bold red", True)``."""
    codes = [CODES[word] for word in style.split() if word in CODES]
    return f"\x1b[{';'.join(codes)}m{text}\x1b[0m" if colours and codes else text


def clean(line: str, colours: bool) -> str:
    """A line that a task printed, as it may be shown: its colours stay on a terminal, nothing else may move the cursor.

    Of a line with carriage returns only the last state is left.

    >>> clean("10%\\r20%", False)
    '20%'
    """
    if line.isprintable():
        return line
    line = line.rstrip("\r").rpartition("\r")[2]
    if "\x1b" not in line:
        return re.sub(_CONTROL, "", line)
    if not colours:
        return re.sub(_CONTROL, "", re.sub(_SEQUENCE, "", line))
    kept = re.sub(_SEQUENCE, lambda found: found[0] if re.fullmatch(_COLOUR, found[0]) else "", line)
    parts = [re.sub(_CONTROL, "", part) for part in re.split(_COLOUR, kept)]
    codes = re.findall(_COLOUR, kept)
    text = "".join(part + code for part, code in zip(parts, [*codes, ""], strict=True))
    return text if not codes or codes[-1] in ("\x1b[0m", "\x1b[m") else text + "\x1b[0m"


def time_text(at: float | None) -> str:
    """Seconds since the epoch as local time, to the second; a dash for None."""
    import time

    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)) if at is not None else "-"


def nearest(word: str, known: Iterable[str]) -> str:
    """The most similar of the known words, "" if none is similar.

    >>> nearest("alpah", ["alpha", "beta"])
    'alpha'
    """
    import difflib

    return next(iter(difflib.get_close_matches(word, [str(name) for name in known], 1)), "")


def meant(word: str, known: Iterable[str], what: str) -> str:
    """What to do about a word that nobody knows: the nearest one, and those there are.

    >>> meant("trian", ["start", "train"], "Steps")
    "Did you mean 'train'? Steps: start, train."
    """
    names = [str(name) for name in known]
    near = nearest(word, names)
    shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    return (f"Did you mean {near!r}? " if near else "") + f"{what}: {shown or 'none'}."


def error_text(error: FlowbookError) -> str:
    """An error as it stands on stderr."""
    colours = has_colours(sys.stderr)
    word = styled("error", "bold red", colours)
    if not isinstance(error, DefinitionError):
        return f"{word}: {error}"
    lines = []
    for finding in error.findings:
        where = styled(finding.where, "bold", colours)
        lines.append(f"{word}: {where}: {finding.what}" if finding.where else f"{word}: {finding.what}")
        lines += [f"    {line}" for line in finding.remedy.splitlines()]
    return "\n".join(lines)


def table(rows: Iterable[tuple[str, ...]], head: tuple[str, ...], colours: bool = False) -> list[str]:
    """Columns as wide as they need be, two spaces between them."""
    body = [tuple(map(str, row)) for row in rows]
    widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [head, *body]]
    return [styled(lines[0], "bold", colours), *lines[1:]]
