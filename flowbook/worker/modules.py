"""Imports inside a task: the notebook's local modules come from the store, and some modules are told of when they come.

A local module has the content it had when the run started, whatever is on disk now, and its original `__file__`, so that data
files beside it are found. Nothing is imported here before the body wants it.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import linecache
import os
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flowbook.store import layout
from flowbook.store.base import Store

Action = Callable[[types.ModuleType], None]


# ---- local modules ---------------------------------------------------------------------------------------------------


class _StoredLoader(importlib.machinery.SourceFileLoader):
    """A source file whose text is a blob. All else (resources, `__file__`, `inspect`) is that of the file's place."""

    def __init__(self, fullname: str, path: str, store: Store, blob: str) -> None:
        super().__init__(fullname, path)
        self._store, self._blob = store, blob

    def get_data(self, path: str) -> bytes:
        return self._store.get(layout.blob(self._blob)) if path == self.path else super().get_data(path)

    def path_stats(self, path: str) -> Any:
        raise OSError("no bytecode is read or written: it would be that of the file on disk")

    def exec_module(self, module: types.ModuleType) -> None:
        source = self.get_source(self.name) or ""
        linecache.cache[str(self.path)] = (len(source), None, source.splitlines(keepends=True), str(self.path))
        super().exec_module(module)


class _StoredFinder:
    def __init__(self, modules: Mapping[str, Any], store: Store) -> None:
        self._modules, self._store = modules, store

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        found = self._modules.get(name)
        if found is None:
            return None
        file = found["file"]
        folders = [os.path.dirname(file)] if found.get("package") else None  # noqa: PTH120 (import machinery works on strings)
        loader = _StoredLoader(name, file, self._store, found["blob"])
        return importlib.util.spec_from_file_location(name, file, loader=loader, submodule_search_locations=folders)


def serve(modules: Mapping[str, Any], store: Store) -> None:
    """Let the modules of Spec.modules be imported as they were when the run started, before any other of that name."""
    if modules:
        sys.meta_path.insert(0, _StoredFinder(modules, store))


def package_of(file: str, modules: Mapping[str, Any]) -> str | None:
    """The package in which the file of a flow stands, if it is one of Spec.modules: its relative imports need it."""
    real = os.path.realpath(file)
    name = next((name for name, info in modules.items() if info["file"] == real), "")
    return name.rpartition(".")[0] or None


# ---- telling of imports ----------------------------------------------------------------------------------------------


class _Watch:
    """A finder that finds by the other finders, and has an action follow the module's own code."""

    def __init__(self) -> None:
        self.actions: dict[str, Action] = {}

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name not in self.actions:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                self._follow(spec, name)
                return spec
        return None

    def _follow(self, spec: importlib.machinery.ModuleSpec, name: str) -> None:
        loader: Any = spec.loader
        run = loader.exec_module

        def exec_module(module: types.ModuleType) -> None:
            run(module)
            if (action := self.actions.get(name)) is not None:
                action(module)

        loader.exec_module = exec_module


_watch = _Watch()


def when_imported(name: str, action: Action) -> None:
    """Call `action` with the module: now if it is imported already, else right after its own code has run."""
    module = sys.modules.get(name)
    if module is not None:
        action(module)
        return
    _watch.actions[name] = action
    if _watch not in sys.meta_path:
        sys.meta_path.insert(0, _watch)


def seed_generators(seed: int) -> None:
    """Seed `random` and numpy's global generator, each now or right after its import, which is left to the body."""
    when_imported("random", lambda module: module.seed(seed))
    when_imported("numpy.random", lambda module: module.seed(seed % 2**32))
