"""Loading what a run made into a process that is not its own: where its classes and functions come from.

A reference to a definition is looked up in this process's `__main__` first, so that an instance is one of the class that the user
has at hand; then among what the run captured, then among what its steps defined, then in its program, whose text is then
executed as an import would. What was rebuilt is kept, so that all values of a run share one class. Nothing is bound in `__main__`.
"""

from __future__ import annotations

import ast
import contextlib
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flowbook import compat
from flowbook.errors import ArtifactError, FlowbookError, StoreMissing
from flowbook.spec.flow import Spec
from flowbook.store import codec, results
from flowbook.store.base import Store

Json = Any
Commits = Callable[[str], Iterator[Mapping[str, Json]]]  # step → COMMITs of its tasks, read one by one


class Space(dict[str, Any]):
    """The main namespace as values of one run see it. What is not there yet is found when it is asked for."""

    def __init__(self, store: Store, spec: Spec, commits: Commits) -> None:
        super().__init__(__name__="__main__")
        self._store, self._spec, self._commits = store, spec, commits
        self._under_way: set[str] = set()
        self._program: dict[str, Any] | None = None

    @property
    def is_compat(self) -> bool:
        """Whether the run's code says `import metaflow` and means flowbook."""
        return self._spec.compat

    def get(self, name: str, default: Any = None) -> Any:
        """For references in pickles: the present definition, else the run's own."""
        present = _present(name)
        if present is not None:
            return present
        try:
            return self[name]
        except KeyError:
            return default

    def __missing__(self, name: str) -> Any:
        """For globals of rebuilt functions: what the run captured; but a class is the present one, so that isinstance holds."""
        present = _present(name)
        if isinstance(present, type):
            return present
        try:
            value = self._rebuilt(name)
        except KeyError:
            if present is None:
                raise
            return present
        return self.setdefault(name, value)

    def _rebuilt(self, name: str) -> Any:
        """Raises KeyError if the run has nothing of that name."""
        if name in self._under_way or name.startswith("__"):
            raise KeyError(name)
        self._under_way.add(name)
        try:
            entry = self._entry(name)
            if entry is not None:
                return codec.load(self._store, entry, name=name, main=self)
            return self._of_program()[name]
        finally:
            self._under_way.discard(name)

    def _entry(self, name: str) -> Mapping[str, Json] | None:
        if name in self._spec.captures:
            captured: Mapping[str, Json] = self._spec.captures[name]["entry"]
            return captured
        if name in self._spec.params:
            parameter: Mapping[str, Json] = self._spec.params[name]
            return parameter
        for step in reversed(self._spec.steps):
            for commit in self._commits(step.name) if name in step.saves else ():
                found: Mapping[str, Json] | None = commit.get("artifacts", {}).get(name)
                if found is not None and found.get("definition"):
                    return found
        return None

    def _of_program(self) -> Mapping[str, Any]:
        """The names of the file of a FlowSpec. Raises ArtifactError, naming the file, if it cannot be executed here."""
        source = self._spec.sources.get(self._spec.program or "", {}).get("source")
        if not isinstance(source, str):
            return {}
        if self._program is None:
            name = f"flow {self._spec.flow}, run {self._spec.run}"  # not __main__: nothing is to be run
            module = types.ModuleType(name)
            module.__file__ = self._spec.program
            before = sys.modules.get(name)
            sys.modules[name] = module  # dataclasses look there for the module of a class
            try:
                exec(compile(_without_start(source), str(self._spec.program), "exec", dont_inherit=True), vars(module))
            except (Exception, SystemExit) as error:
                sys.modules.pop(name, None)
                if before is not None:
                    sys.modules[name] = before
                raise ArtifactError(
                    f"a definition of {self._spec.program}, as it was in run {self._spec.run}, is needed; but that file "
                    f"raises {type(error).__name__} here: {error}. Define or import it here first, then load the value again."
                ) from error
            self._program = {known: vars(module)[known] for known in _defined(source) if known in vars(module)}
        return self._program


def _present(name: str) -> Any:
    found = vars(sys.modules["__main__"]).get(name)
    return None if getattr(type(found), "_flowbook_absent", False) else found


def _defined(source: str) -> list[str]:
    """The functions and classes at the top of a file."""
    return [node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)]


def _without_start(source: str) -> ast.Module:
    """The file without calls such as ``TrainFlow()`` at its top, with which one that lacks the guard would run itself."""
    tree, own = ast.parse(source), set(_defined(source))
    tree.body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and getattr(node.value.func, "id", None) in own)
    ]
    return tree


def load(reader: results.Reader, entry: Mapping[str, Json], name: str) -> Any:
    """The value of an entry. References to tasks inside it read through `reader`, now and later. Raises ArtifactError, StoreError."""
    before = results.set_reader(reader)
    try:
        with compat.resolving() if isinstance(reader.main, Space) and reader.main.is_compat else contextlib.nullcontext():
            return reader.load(entry, name)
    except StoreMissing as error:
        raise ArtifactError(f"the data of {name} is no longer in the store ({error}). Run its step again.") from None
    except FlowbookError as error:
        raise _in_client_words(error, name) from None
    finally:
        results.set_reader(before)


def _in_client_words(error: FlowbookError, name: str) -> FlowbookError:
    """The codec speaks to notebooks; here nobody can run a cell."""
    text = str(error)
    cell = " of the notebook, which is not defined here. Run the cell that defines it."
    if isinstance(error, ArtifactError) and text.endswith(cell):
        return ArtifactError(
            text.removesuffix(cell) + ", which is not defined here, nor kept with the run. Define it in this process, then load again."
        )
    return error
