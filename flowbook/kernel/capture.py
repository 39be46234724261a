"""What goes along with a run from the plain cells of the kernel: modules, functions, classes, data, local `.py` files.

A capture is a snapshot taken while `%flow run` executes. Functions and classes go by value together with what they use in
turn; classes keep their identity by qualified name, so an instance stays an instance. Nothing here knows of steps beyond names.
"""

from __future__ import annotations

import dis
import inspect
import linecache
import re
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flowbook.errors import CaptureError, NotPicklable
from flowbook.store import canon, codec
from flowbook.store.base import Store
from flowbook.store.package import imported_first, local_modules, module_spec

LARGE_BYTES = 100_000_000
SECRET_NAME = re.compile(
    r"(^|_)(password|passwd|passphrase|secret|api_?key|secret_?key|access_?key|private_?key|auth_?token|api_?token|credentials?)(_|$)", re.I
)
SECRET_VALUE = re.compile(
    r"(AKIA|ASIA)[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY|gh[pousr]_[A-Za-z0-9]{30}|xox[abprs]-[A-Za-z0-9-]{10}|sk-[A-Za-z0-9_-]{20}|hf_[A-Za-z0-9]{30}"
    r"|eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\."
)


@dataclass
class Captured:
    """name → {entry, kind, origin, size, key, needs, modules}; local modules; sources for tracebacks; what to say to the user."""

    names: dict[str, Any] = field(default_factory=dict)
    modules: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def looks_secret(name: str, value: Any) -> bool:
    """Whether a value should not be written into a store: by the name it has, or by its own form."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        return bool(value) and (bool(SECRET_NAME.search(name)) or bool(SECRET_VALUE.search(value)))
    if isinstance(value, Mapping) and len(value) <= 100:
        return any(isinstance(key, str) and isinstance(item, (str, bytes)) and looks_secret(key, item) for key, item in value.items())
    if isinstance(value, (list, tuple)) and len(value) <= 100:
        return any(isinstance(item, str) and bool(SECRET_VALUE.search(item)) for item in value)
    return False


def capture(
    wanted: Iterable[str],
    namespace: dict[str, Any],
    mine: Mapping[str, Any],
    store: Store,
    *,
    skip: Callable[[str], bool],
    origin: Callable[[str], str],
    label: Callable[[str], str | None],
    readers: Callable[[str], str],
    secrets: Iterable[str] = (),
) -> Captured:
    """Write the values of `wanted`, and of all that they use in turn, to the store.

    `namespace` is the kernel's own dict, by which its functions are known; values in `mine` stand in front of it.
    `skip(name)`: made by the flow itself, a parameter, or bound by %%flowsetup: never captured. `label(filename)`: the cell a
    code file is; `readers(name)`: who reads it, for messages. Raises CaptureError for a secret or a value that cannot be
    pickled; a name that does not exist is left out (the caller has checked what is required).
    """
    result = Captured()
    declared = set(secrets)
    roots: set[str] = set()
    queue = sorted(wanted)

    while queue:
        name = queue.pop()
        if name in result.names or (name not in namespace and name not in mine) or skip(name):
            continue
        value = mine[name] if name in mine else namespace[name]
        if isinstance(value, types.ModuleType):
            roots.add(value.__name__.partition(".")[0])
            result.names[name] = {
                "entry": {"kind": "module", "module": value.__name__, **_submodules(value)},
                "kind": "module",
                "origin": getattr(value, "__version__", "") if isinstance(getattr(value, "__version__", ""), str) else "",
                "size": 0,
                "key": canon.short_hash(value.__name__),
                "needs": [],
                "modules": [value.__name__.partition(".")[0]],
            }
            continue
        if name in declared or looks_secret(name, value):
            raise CaptureError(
                f"`{name}`, read by {readers(name)}, looks like a secret, and captured values are written to the store.\n"
                f"    Read it inside the step: os.environ[...], with `--env NAME` to take NAME from this kernel's environment."
            )
        try:
            encoded = codec.encode(value, name=name, main=namespace, root=True, store=store)
        except NotPicklable as error:
            raise CaptureError(
                f"`{name}`, read by {readers(name)} and set in {origin(name)}, cannot go along with the run: {error}\n"
                f"    Make it inside the step, or in a %%flowsetup cell, which runs in every pod."
            ) from None
        entry = codec.finish(store, encoded, value)
        key = entry.get("key")
        if key is None and not canon.by_address(value) and encoded.nbytes <= codec.KEYED_BYTES:
            # What it uses by name is captured as well, and has a key of its own.
            key = canon.content_key(value, main=namespace, keys=lambda _: "", code=True)
        key = key or canon.entry_key(entry)
        kind = "class" if isinstance(value, type) else "function" if _is_function(value) else "data"
        needs = sorted({ref.partition(".")[0] for ref in encoded.refs} | set(encoded.globals))
        needs = [need for need in needs if need != name]
        imported = {root for function in _code_of(value) for root in _imported_by(function.__code__)} if kind != "data" else set()
        modules = sorted(imported | encoded.modules)
        roots |= set(modules)
        size = entry.get("size", 0)
        if size > LARGE_BYTES:
            result.warnings.append(f"`{name}` is captured with {size / 1e6:,.0f} MB; a step that makes it would send it once")
        result.names[name] = {"entry": entry, "kind": kind, "origin": origin(name), "size": size, "key": key, "needs": needs}
        result.names[name]["modules"] = modules
        if kind != "data":
            for function in _code_of(value):
                _add_source(result.sources, function, label)
        queue.extend(needs)
    result.modules = local_modules(roots, store)
    return result


def add_modules(captured: Captured, roots: Iterable[str], store: Store) -> None:
    """Bring along the local modules that step bodies import themselves."""
    captured.modules.update(local_modules(set(roots), store, known=captured.modules))


def imports_beforehand(captured: Captured, values: Iterable[Any], sources: Iterable[str]) -> tuple[str, ...]:
    """Modules that every task will import, so that one process may do it for all: what captured values are made of, and what bodies
    and setup cells import at their top level.

    None where a cell touches the environment: libraries read it when they are imported. None of the notebook's folder: those go by
    content.
    """
    found: set[str] = set()
    for value in values:
        if isinstance(value, types.ModuleType):
            found.add(value.__name__)
        else:
            made_by = value if isinstance(value, type) or callable(value) else type(value)
            found.add(str(getattr(made_by, "__module__", None) or "builtins"))
    for source in sources:
        if re.search(r"environ|putenv", source):
            return ()
        found |= imported_first(source)
    known = {"__main__", "builtins", *captured.modules, *(name.partition(".")[0] for name in captured.modules)}
    return tuple(sorted(n for n in found if n not in known and n.partition(".")[0] not in known and module_spec(n)))


def _submodules(value: types.ModuleType) -> dict[str, list[str]]:
    """Public submodules that are loaded and hang on a package: `import xml.dom` in a cell is what makes `xml.dom` there."""
    prefix = f"{value.__name__}."
    if not hasattr(value, "__path__"):
        return {}
    found = [
        n
        for n in sys.modules
        if n.startswith(prefix) and n.count(".") <= prefix.count(".") + 1 and not n.rpartition(".")[2].startswith("_")
    ]
    return {"submodules": sorted(found)}


def keep_mentioned(captured: Captured, texts: Iterable[str]) -> None:
    """Of the submodules of captured packages only those that some code mentions are worth their import."""
    text = "\n".join(texts)
    for info in captured.names.values():
        if "submodules" in info["entry"]:
            info["entry"]["submodules"] = [name for name in info["entry"]["submodules"] if name in text]


def _is_function(value: Any) -> bool:
    return isinstance(value, (types.FunctionType, types.BuiltinFunctionType)) or hasattr(value, "__wrapped__")


def _imported_by(code: types.CodeType) -> set[str]:
    """Root names of the modules that a function imports itself, when it is called."""
    found = {str(step.argval).partition(".")[0] for step in dis.get_instructions(code) if step.opname == "IMPORT_NAME"}
    inner = (const for const in code.co_consts if isinstance(const, types.CodeType))
    return found.union(*map(_imported_by, inner)) - {""}


def _code_of(value: Any) -> list[types.FunctionType]:
    value = inspect.unwrap(value) if callable(value) and not isinstance(value, type) else value
    if isinstance(value, types.FunctionType):
        return [value]
    return [m for m in vars(value).values() if isinstance(m, types.FunctionType)] if isinstance(value, type) else []


def _add_source(sources: dict[str, Any], function: types.FunctionType, label: Callable[[str], str | None]) -> None:
    filename = function.__code__.co_filename
    if filename not in sources and (cell := label(filename)) is not None:
        sources[filename] = {"label": cell, "source": "".join(linecache.getlines(filename))}
