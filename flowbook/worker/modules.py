"""Imports of a task: local `.py` files as they were when the run started, and numpy's generator seeded when numpy arrives."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from flowbook.store import layout
from flowbook.store.base import Store


class LocalModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Serves the run's local modules from its blobs. `__file__` is the original path, so data beside the code is found."""

    def __init__(self, store: Store, modules: dict[str, Any]) -> None:
        self._store, self._modules = store, modules

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        known = self._modules.get(name)
        if known is None:
            return None
        spec = importlib.machinery.ModuleSpec(name, self, origin=known["file"], is_package=bool(known["package"]))
        spec.has_location = True
        if known["package"]:
            spec.submodule_search_locations = [known["file"].rpartition("/")[0]]
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        known = self._modules[module.__name__]
        source = self._store.get(layout.blob(known["blob"]))
        exec(compile(source, known["file"], "exec"), module.__dict__)

    def get_source(self, name: str) -> str:
        return importlib.util.decode_source(self._store.get(layout.blob(self._modules[name]["blob"])))


class _SeedNumpy(importlib.abc.MetaPathFinder):
    """Seeds numpy's global generator right after numpy.random is imported: importing numpy just for that would cost 0.1 s."""

    def __init__(self, seed: Callable[[], int]) -> None:
        self._seed = seed
        self._busy = False

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "numpy.random" or self._busy:
            return None
        self._busy = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._busy = False
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            module.seed(self._seed())

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


_numpy_seed = 0


def seed_all(seed: int) -> None:
    """Seed `random` now, and numpy's global generator now or when it is imported."""
    import random

    global _numpy_seed
    random.seed(seed)
    _numpy_seed = seed % 2**32
    loaded = sys.modules.get("numpy.random")
    if loaded is not None:
        loaded.seed(_numpy_seed)
    elif not any(isinstance(f, _SeedNumpy) for f in sys.meta_path):
        sys.meta_path.insert(0, _SeedNumpy(lambda: _numpy_seed))
