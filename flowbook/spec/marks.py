"""What a decorator leaves behind: a `Mark` on the function of a step, or on the class of a flow.

Decorators do no more than that, so they can stand in any order and cost nothing on import. decorators.py and schedules.py read
the marks. Marks of a function are in the order in which they are written, the outermost first; those of a class likewise, after
those of its bases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

MARKS = "__flowbook_marks__"


@dataclass(frozen=True)
class Mark:
    """One decorator as it was written: ``@retry(times=3)`` is Mark("retry", {"times": 3}).

    `values` are arguments without a name. `function` is that of a decorator of the user's own. `origin` says where it comes from
    if that is no decorator: ``--with retry:times=3``.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    values: tuple[Any, ...] = ()
    function: Callable[..., Any] | None = None
    origin: str = ""

    @property
    def shown(self) -> str:
        return self.origin or f"@{self.name}"


def leave(mark: Mark, target: Any) -> None:
    """Put a mark on a function or a class, in front of those already there. Raises AttributeError or TypeError for what takes none."""
    if not isinstance(target, type):
        setattr(target, MARKS, [mark, *getattr(target, MARKS, ())])
        return
    inherited = _inherited(target)
    own = own_marks(target)
    setattr(target, MARKS, [*inherited, mark, *own])


def marks_of(function: Any) -> tuple[Mark, ...]:
    """The marks of a step's function, the outermost first."""
    return tuple(getattr(function, MARKS, ()))


def own_marks(cls: type) -> tuple[Mark, ...]:
    """The marks that the class itself was given, the outermost first."""
    found = cls.__dict__.get(MARKS)
    return () if found is None else tuple(found[len(_inherited(cls)) :])


def class_marks(cls: type) -> list[Mark]:
    """The marks of a class, those of its bases in front."""
    return [*_inherited(cls), *own_marks(cls)]


def _inherited(cls: type) -> list[Mark]:
    found: list[Mark] = []
    for base in reversed(cls.__bases__):
        found += [mark for mark in class_marks(base) if not any(mark is known for known in found)]
    return found
