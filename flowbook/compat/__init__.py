"""Flow files that are written for Metaflow, run as they are: after `install()`, `import metaflow` gives flowbook's own names.

``flowbook run file.py`` calls `install` before it executes the file; so do the workers of such a run, since its spec says so
(Spec.compat), and a program or a notebook may call it itself. It puts a finder in front of all others and costs nothing until
somebody imports metaflow, which need not be installed; if it is, it is not looked at. table.py says which name is what.

A name that flowbook cannot serve raises NotSupported where the file imports it, or, if it is a decorator, where the file uses it:
never silently, never in the middle of a run.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flowbook.errors import DefinitionError, Finding

NAME = "metaflow"
_ORIGIN = "flowbook.compat"  # of the modules' specs: no file, so that nobody takes them along as code or imports them early
_OURS = str(Path(__file__).parent.parent)


class NotSupported(DefinitionError, ImportError):
    """A flow file asks for a part of Metaflow that flowbook does not have. An ImportError too, so that `except ImportError` works."""


def install() -> None:
    """Let `import metaflow`, and of its public submodules, mean flowbook in this process. Calling it again does nothing."""
    if installed():
        return
    for name in [name for name, module in sys.modules.items() if _is_name(name) and not _is_ours(module)]:
        del sys.modules[name]  # of a Metaflow that is installed here
    sys.meta_path.insert(0, _Finder())


def installed() -> bool:
    return any(isinstance(finder, _Finder) for finder in sys.meta_path)


def uninstall() -> None:
    """Undo `install`. Who has imported a name keeps it."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]
    for name in [name for name, module in sys.modules.items() if _is_name(name) and _is_ours(module)]:
        del sys.modules[name]


@contextlib.contextmanager
def resolving() -> Iterator[None]:
    """`install` for a while, as for code of a run that was made so. A Metaflow that is installed here is itself again afterwards."""
    if installed():
        yield
        return
    before = {name: module for name, module in sys.modules.items() if _is_name(name)}
    install()
    try:
        yield
    finally:
        uninstall()
        sys.modules.update(before)


def _is_name(name: str) -> bool:
    return name.partition(".")[0] == NAME


def _is_ours(module: Any) -> bool:
    return isinstance(module, _Module)


class _Module(types.ModuleType):
    """One module of Metaflow's. Names are resolved when they are asked for, so that an import of it costs next to nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            if name != "__all__":
                raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
            return list(_table().names_of(self.__name__))
        value = resolve(self.__name__, name)
        setattr(self, name, value)
        return value

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_table().names_of(self.__name__)})


class _Finder:
    """Finds metaflow and its submodules, and refuses those that are not there, with the reason."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not _is_name(fullname):
            return None
        table = _table()
        if fullname not in table.MODULES:
            why = table.why_not(fullname)
            if why is None:
                return None
            raise refusal(fullname, why)
        spec = importlib.machinery.ModuleSpec(fullname, self, origin=_ORIGIN, is_package=True)  # type: ignore[arg-type]
        spec.submodule_search_locations = []
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Module(spec.name, f"{spec.name} as flowbook serves it; see flowbook/compat.")

    def exec_module(self, module: types.ModuleType) -> None: ...


def name_as_metaflow(kept: Exception, error: Exception, traceback: str) -> None:
    """Let an error that @catch keeps answer by Metaflow's names, too: `type`, `exception` and `stacktrace`, all texts."""
    kind = f"{type(error).__module__}.{type(error).__qualname__}"
    for name, value in (("type", kind), ("exception", str(error)), ("stacktrace", traceback)):
        if not hasattr(kept, name):
            with contextlib.suppress(AttributeError, TypeError):  # a class with __slots__
                setattr(kept, name, value)


def resolve(module: str, name: str) -> Any:
    """What ``from MODULE import NAME`` gives. Raises NotSupported, AttributeError for a name that Metaflow has not either."""
    table = _table()
    target = table.MODULES[module].get(name)
    if target is not None:
        return _load(target)
    if f"{module}.{name}" in table.MODULES:
        return importlib.import_module(f"{module}.{name}")
    why = table.REFUSED.get(f"{module}.{name}") or table.REFUSED.get(name)
    if why is None:
        raise AttributeError(f"module {module!r} has no attribute {name!r}{_near(module, name)}")
    if name in table.DECORATORS:
        return _refused_decorator(f"{module}.{name}", why)
    raise refusal(f"{module}.{name}", why)


def _load(target: str) -> Any:
    where, _, attribute = target.partition(":")
    found = importlib.import_module(where)
    return getattr(found, attribute) if attribute else found


def _near(module: str, name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, _table().names_of(module), 1)
    return f". Did you mean {near[0]!r}?" if near else ""


def _refused_decorator(name: str, why: str) -> Any:
    """Stands for a decorator in a file that imports it, until it is used."""

    def refuse(*values: Any, **arguments: Any) -> Any:
        raise refusal(name, why)

    refuse.__name__ = refuse.__qualname__ = name.rpartition(".")[2]
    refuse.__doc__ = why
    return refuse


def refusal(name: str, why: str) -> NotSupported:
    """The error for a name, placed at the line of the user's file that asks for it."""
    return NotSupported(Finding(_user_place(), f"{name} is not supported", why))


def _user_place() -> str:
    frame = sys._getframe(1)
    while frame is not None:
        filename = frame.f_code.co_filename
        if not filename.startswith((_OURS, "<frozen ")) and "importlib" not in filename:
            return f"{Path(filename).name}, line {frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""


def _table() -> Any:
    return importlib.import_module("flowbook.compat.table")
