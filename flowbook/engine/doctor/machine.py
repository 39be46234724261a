"""Versions of this machine, and what is wrong with the settings."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections.abc import Iterable, Iterator

from flowbook._version import __version__
from flowbook.engine.doctor.core import Check, Found

SHOWN = ("python", "cloudpickle", "ipykernel", "ipython", "anywidget", "kubernetes")  # others only if they are wrong


def checks(warnings: Iterable[str]) -> list[Check]:
    """`warnings`: those of the settings."""
    return [
        Check("here", "versions", versions, limit_s=None),
        Check("here", "settings", lambda: [Found("warn", warning) for warning in warnings], limit_s=None),
    ]


def versions() -> Iterator[Found]:
    """Of Python and of all that flowbook is declared to need; those that fit in one line."""
    needed = importlib.metadata.metadata("flowbook")
    wanted = {"python": needed["Requires-Python"] or ""}
    for line in needed.get_all("Requires-Dist") or ():
        name, asked = re.fullmatch(r"\s*([A-Za-z0-9._-]+)[^<>=!~;]*([^;]*).*", line).groups()  # type: ignore[union-attr]
        if "extra ==" not in line:
            wanted[name.lower()] = asked
    fit, wrong = [f"flowbook {__version__}"], []
    for name, asked in wanted.items():
        label = "Python" if name == "python" else name
        try:
            installed = platform.python_version() if name == "python" else importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(Found("bad", f"{label} is not installed", f"pip install {name}"))
            continue
        if not within(installed, asked):
            wrong.append(Found("bad", f"{label} {installed} is not what flowbook asks for ({asked})", f'pip install "{name}{asked}"'))
        elif name in SHOWN:
            fit.append(f"{label} {installed}")
    yield Found("ok", ", ".join(fit))
    yield from wrong


def within(version: str, wanted: str) -> bool:
    """Whether a version is in ``>=6.31,<8``; of versions only the leading numbers are compared.

    >>> within("6.31.0", ">=6.31,<8"), within("8.0", ">=6.31,<8"), within("3.11.2", "")
    (True, False, True)
    """
    have = numbers(version)
    for part in filter(None, (part.strip() for part in wanted.split(","))):
        sign, text = re.fullmatch(r"(>=|<=|==|!=|~=|>|<)\s*(.+)", part).groups()  # type: ignore[union-attr]
        want = numbers(text)
        width = max(len(have), len(want))
        a, b = (found + (0,) * (width - len(found)) for found in (have, want))
        short = have[: len(want)] == want
        fits = {">=": a >= b, "<=": a <= b, ">": a > b, "<": a < b}
        fits |= {"==": short if "*" in text else a == b, "!=": not short if "*" in text else a != b}
        fits["~="] = a >= b and have[: len(want) - 1] == want[:-1]
        if not fits[sign]:
            return False
    return True


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers: ``v1.34.2+k3s1`` → (1, 34, 2)."""
    found = re.match(r"v?(\d+(\.\d+)*)", version.strip())
    return tuple(map(int, found[1].split("."))) if found else ()
