"""Several things at once: the children of an object, the artifacts of a task by name, and their values."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, overload

from flowbook.client import html
from flowbook.client.place import NotFound
from flowbook.store.results import NoArtifact

if TYPE_CHECKING:
    from flowbook.client.objects import Artifact


class _Tagged(Protocol):
    @property
    def tags(self) -> frozenset[str]: ...


Child = TypeVar("Child", bound=_Tagged)


class Children(tuple[Child, ...], Generic[Child]):
    """Some objects. Called, it gives those whose tags hold all that are given: ``run.steps`` and ``run.steps()`` are both right."""

    __slots__ = ()

    def __call__(self, *wanted: str) -> Children[Child]:
        return Children(child for child in self if set(wanted) <= child.tags) if wanted else self

    @overload  # type: ignore[override]
    def __getitem__(self, where: int) -> Child: ...
    @overload
    def __getitem__(self, where: slice) -> Children[Child]: ...
    def __getitem__(self, where: int | slice) -> Child | Children[Child]:
        found: Any = super().__getitem__(where)
        return Children(found) if isinstance(where, slice) else found


class _Named:
    """Artifacts by name, as attributes; names that begin with ``_`` are there, but not listed."""

    def __init__(self, artifacts: Mapping[str, Artifact], label: str, why_none: str = "", unsaved: Mapping[str, str] | None = None) -> None:
        self._artifacts = dict(artifacts)
        self._label, self._why_none, self._unsaved = label, why_none, dict(unsaved or {})

    def _get(self, artifact: Artifact) -> Any:
        return artifact

    def __getattr__(self, name: str) -> Any:
        if (
            name.startswith("__")
            or "_artifacts" not in vars(self)
            or (name.startswith(("_repr_", "_ipython_")) and name not in self._artifacts)
        ):
            raise AttributeError(name)  # asked by copy, pickle and every notebook frontend
        if name not in self._artifacts:
            raise NoArtifact(self._absent(name))
        return self._get(self._artifacts[name])

    def __getitem__(self, name: str) -> Any:
        if name not in self._artifacts:
            raise NotFound(self._absent(name))
        return self._get(self._artifacts[name])

    def _absent(self, name: str) -> str:
        if name in self._unsaved:
            return f"{self._label} did not save {name!r}: {self._unsaved[name]}"
        near = difflib.get_close_matches(name, self._artifacts, 1)
        hint = f"Did you mean {near[0]!r}?" if near else f"It has: {', '.join(self._names()) or 'none'}."
        return (
            f"{self._label} has no artifact {name!r}: {self._why_none}."
            if self._why_none
            else f"{self._label} has no artifact {name!r}. {hint}"
        )

    def _names(self) -> list[str]:
        return [name for name in self._artifacts if not name.startswith("_")]

    def __contains__(self, name: object) -> bool:
        return name in self._artifacts

    def __iter__(self) -> Iterator[Artifact]:
        return (self._artifacts[name] for name in self._names())

    def __len__(self) -> int:
        return len(self._names())

    def __bool__(self) -> bool:
        return True

    def __dir__(self) -> list[str]:
        return sorted({*self._names(), *(name for name in dir(type(self)) if name.startswith("__"))})

    def _ipython_key_completions_(self) -> list[str]:
        return self._names()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._label}: {', '.join(self._names()) or 'nothing'}>"

    def _repr_html_(self) -> str:
        return html.artifacts(self._label, list(self))


class Artifacts(_Named):
    """The artifacts of a task: ``task.artifacts.model.size``. Iterated, the artifacts."""


class Data(_Named):
    """The values of artifacts: ``task.data.model`` loads it, once."""

    def __init__(self, artifacts: Mapping[str, Artifact], label: str, why_none: str = "", unsaved: Mapping[str, str] | None = None) -> None:
        super().__init__(artifacts, label, why_none, unsaved)
        self._values: dict[str, Any] = {}

    def _get(self, artifact: Artifact) -> Any:
        if artifact.id not in self._values:
            self._values[artifact.id] = artifact.data
        return self._values[artifact.id]
