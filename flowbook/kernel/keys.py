"""What a step's result depends on, as far as the kernel knows: Step.key, Step.plan_key, and the parts they are made of.

A part is a name that people know ("code", "`alpha`", "parameter epochs", "module numpy") and a hash; the key is a hash of them. So
equal keys mean equal parts, and a miss can say which part is another. What other steps make is no part: the engine adds the keys
of what a task reads. Nor are resources, retries and time-outs: they change no result.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import importlib.metadata
import json
import os
import re
import secrets
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowbook.errors import DefinitionError, Finding
from flowbook.kernel import reads
from flowbook.kernel.capture import Captured
from flowbook.spec.body import ast_key
from flowbook.spec.flow import Input, Step
from flowbook.store import canon

Parts = dict[str, str]


@dataclass(frozen=True)
class Setup:
    """The %%flowsetup cells, which run at the start of every worker."""

    sources: tuple[str, ...] = ()
    imports: frozenset[str] = frozenset()
    captures: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Known:
    """All that a run's steps may depend on, as it is when the run starts.

    `reads`: step → names that its body reads; `imports`: step → root names of the modules that it imports; `params`: name → entry;
    `files`: path → {sha256, …}; `space`: the kernel's namespace, for --cache-key; `life`: a random word of the kernel.
    """

    captured: Captured
    reads: Mapping[str, Iterable[str]] = field(default_factory=dict)
    imports: Mapping[str, Iterable[str]] = field(default_factory=dict)
    setup: Setup = Setup()
    params: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Any] = field(default_factory=dict)
    space: Mapping[str, Any] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    folder: Path = field(default_factory=Path.cwd)
    life: str = ""
    tags: tuple[str, ...] = ()


FOLDERS = re.compile(r"\b(glob|iglob|rglob|listdir|scandir|iterdir|walk|exists|is_file|is_dir|stat|getmtime)\b")
CURRENT = re.compile(r"\bcurrent\b")
RUN = re.compile(r"\bcurrent\.(run|run_id|pathspec|idempotency_key)\b")


def keyed(steps: Iterable[Step], known: Known) -> list[Step]:
    """The steps, each with its key, its plan's key, and the parts. Raises DefinitionError for a --cache-key that gives none.

    Each captured definition gets "deep", a key of itself and all that it uses in turn: a value of its class depends on that.
    """
    deepen(known)
    local = _Local(known.captured.modules)
    common = _common(known, local)
    return [_keyed(step, known, local, common) for step in steps]


def _keyed(step: Step, known: Known, local: _Local, common: Parts) -> Step:
    if RUN.search(step.source):
        step = dataclasses.replace(step, options=dataclasses.replace(step.options, no_cache=True))  # only a resume may take its results
    own = common | _environment(step, known)
    if CURRENT.search(step.source):
        own["current"] = canon.short_hash(json.dumps(known.tags))
    if step.options.cache_key is not None:
        own["--cache-key"] = _value_of(step.options.cache_key, step, known)
    parts = own | _body(step, known, local)
    plan_key = _hashed({"step": step.name} | own | _plan(step, known, local)) if step.planned else ""
    return dataclasses.replace(step, parts=parts, key=_hashed({"step": step.name} | parts), plan_key=plan_key)


def resumed(steps: Iterable[Step], before: Iterable[Step], told: Iterable[str]) -> list[Step]:
    """The steps of a run that goes on where another one stopped: what their text reads from outside may have changed meanwhile.

    Often that is the very mend: the file that was missing. `told` are the files of --files, which count all the same.
    """
    outside = re.compile(r"(file|variable) ")
    counted = {f"file {path}" for path in told}
    origins = {step.name: step for step in before}

    def inside(parts: Parts) -> Parts:
        return {name: value for name, value in parts.items() if not outside.match(name) or name in counted}

    found = []
    for step in steps:
        origin = origins.get(step.name)
        same = origin is not None and inside(step.parts) == inside(origin.parts)
        found.append(dataclasses.replace(step, key=origin.key, parts=origin.parts) if same and origin is not None else step)
    return found


def unchanged(steps: Iterable[Step], before: Iterable[Step]) -> tuple[str, ...]:
    """Names of the steps that are as before, with all steps above them."""
    keys = {step.name: (step.key, step.plan_key) for step in before}
    found: list[str] = []
    for step in steps:
        makers = {maker for given in (*step.inputs, *step.plan_inputs) for maker in given.makers}
        above = {*makers, *step.options.join, *step.options.after, *step.scope} - {step.name}
        if keys.get(step.name) == (step.key, step.plan_key) and above.issubset(found):
            found.append(step.name)
    return tuple(found)


# ---- the parts -------------------------------------------------------------------------------------------------------


def _common(known: Known, local: _Local) -> Parts:
    """What every step depends on."""
    found = {
        "the working folder": canon.short_hash(str(known.folder)),
        "Python": canon.short_hash(f"{sys.version_info.major}.{sys.version_info.minor}"),
    }
    setup = known.setup
    if setup.sources:
        used = _captured(setup.captures, known, local) | local.parts(setup.imports) | _read_outside(setup.sources, setup.captures, known)
        used |= _params((word for source in setup.sources for word in re.findall(r"\w+", source)), setup.captures, known)
        found["%%flowsetup"] = canon.short_hash(json.dumps([[ast_key(source) for source in setup.sources], sorted(used.items())]))
    return found


def _body(step: Step, known: Known, local: _Local) -> Parts:
    o = step.options
    options = [o.foreach.target if o.foreach else None, o.join, o.out, o.out_add, o.catch, o.always, sorted(o.after)]
    parts = {"code": ast_key(step.source)[:22], "options": canon.short_hash(json.dumps(options))}
    captures = _closed(_captured_inputs(step.inputs), known)  # Step.captures has those of the plans that the step hosts, too
    params = _params(known.reads.get(step.name, ()), captures, known)
    parts |= _captured(captures, known, local) | local.parts(known.imports.get(step.name, ())) | params
    for path, info in known.files.items():
        if any(fnmatch.fnmatch(path, pattern) for pattern in o.files):
            parts[f"file {path}"] = info["sha256"][:22]
    parts = _read_outside([step.source], captures, known) | parts  # what --files names counts by content
    if o.cache_key is None and o.cache_for_s is None and _asks_the_world(step.source, captures, known):
        parts["life"] = known.life
    told = o.foreach or o.join or o.files or params or _made((*step.inputs, *step.plan_inputs)) or _data(captures, known)
    return parts if told or _told_otherwise(step) else parts | {"life": known.life}


def _plan(step: Step, known: Known, local: _Local) -> Parts:
    """What --foreach and --when depend on; the items themselves are told by their ids."""
    o = step.options
    texts = [o.foreach.expr if o.foreach else "", o.when or ""]
    captures = _closed(_captured_inputs(step.plan_inputs), known)
    params = _params(re.findall(r"\w+", " ".join(texts)), captures, known)
    parts = {"code": canon.short_hash(json.dumps([o.foreach.target if o.foreach else None, *map(ast_key, texts)]))}
    parts |= _captured(captures, known, local) | params | _read_outside(texts, captures, known)
    parts |= {f"file {path}": info["sha256"][:22] for path, info in known.files.items()}
    if FOLDERS.search(" ".join(texts)):
        parts["folders"] = secrets.token_hex(8)  # what it finds there is told by evaluating it
    told = params or _made(step.plan_inputs) or _data(captures, known)
    return parts if told or _told_otherwise(step) else parts | {"life": known.life}


def deepen(known: Known) -> None:
    """Give each captured definition "deep", a key of itself and all that it uses in turn: a value of its class depends on that."""
    local = _Local(known.captured.modules)
    for name, info in known.captured.names.items():
        if info["kind"] in ("function", "class"):
            info["deep"] = _hashed(_captured([name], known, local))


def method_parts(source: str, names: Iterable[str], imports: Iterable[str], told: bool, known: Known) -> Parts:
    """What the kernel contributes to a step of a FlowSpec in a cell: captured names that its text mentions, modules, files,
    variables. `imports` are root names of modules that it imports or comes from; `told`: it reads something that could be told, a
    parameter or what a step before made.
    """
    local = _Local(known.captured.modules)
    captures = _closed(names, known)
    parts = _common(known, local) | _captured(captures, known, local) | local.parts(imports) | _read_outside([source], captures, known)
    if CURRENT.search(source):
        parts["tags"] = canon.short_hash(json.dumps(known.tags))
    if RUN.search(source):
        parts["the run"] = secrets.token_hex(8)  # only a resume may take its results, and that is by the origin's key
    if not (told or _data(captures, known)) or _asks_the_world(source, captures, known):
        parts["life"] = known.life
    return parts


def _read_outside(sources: Iterable[str], captures: Iterable[str], known: Known) -> Parts:
    """Files and variables which the text names, in captured functions too. A step that only has these still is a source step."""
    named = [name for name in captures if known.captured.names[name]["kind"] in ("function", "class")]
    texts = [*sources, *(reads.source_of(known.space[name]) for name in named if name in known.space)]
    paths = [known.space.get(name) for name in captures if known.captured.names[name]["kind"] == "data"]
    return {name: canon.short_hash(told) for name, told in reads.state(texts, known.folder, known.environ, paths).items()}


def _asks_the_world(source: str, captures: Iterable[str], known: Known) -> bool:
    """Whether the text, or that of a captured function, asks a clock, the system's randomness, a network or a database."""
    named = [name for name in captures if known.captured.names[name]["kind"] in ("function", "class") and name in known.space]
    return any(reads.asks_the_world(text) for text in (source, *(reads.source_of(known.space[name]) for name in named)))


def _captured(names: Iterable[str], known: Known, local: _Local) -> Parts:
    """Captured names, with all that they use in turn, and the modules of these."""
    found, roots = {}, set()
    for name in _closed(names, known):
        info = known.captured.names[name]
        found[f"`{name}`"] = info["key"]
        roots |= set(info["modules"])
    return found | local.parts(roots)


def _closed(names: Iterable[str], known: Known) -> list[str]:
    found: set[str] = set()
    queue = list(names)
    while queue:
        name = queue.pop()
        if name not in found and name in known.captured.names:
            found.add(name)
            queue.extend(known.captured.names[name]["needs"])
    return sorted(found)


def _captured_inputs(inputs: Iterable[Input]) -> list[str]:
    return [given.name for given in inputs if given.captured]


def _params(names: Iterable[str], captures: Iterable[str], known: Known) -> Parts:
    """The parameters among the names, and those that captured functions read."""
    read = {*names, *(need for name in captures for need in known.captured.names[name]["needs"])}
    return {f"parameter {name}": canon.entry_key(entry) for name, entry in known.params.items() if name in read}


def _environment(step: Step, known: Known) -> Parts:
    """The variables of --env; a value that is taken from the kernel goes into the hash and nowhere else."""
    if not step.options.env:
        return {}
    values = sorted((name, known.environ.get(name) if value is None else value) for name, value in step.options.env)
    return {"environment": canon.short_hash(json.dumps(values))}


def _value_of(expression: str, step: Step, known: Known) -> str:
    try:
        value = eval(compile(expression, f"<--cache-key of {step.name}>", "eval"), dict(known.space))
    except Exception as error:
        why = f"--cache-key {expression}: {type(error).__name__}: {error}"
        raise DefinitionError(Finding(step.label, why, "It is evaluated in the kernel when the run starts.")) from None
    key = canon.content_key(value, main=dict(known.space))
    if key is None:
        why = f"--cache-key {expression}: a {type(value).__name__} has no form by which it could be told from another one"
        raise DefinitionError(Finding(step.label, why, "Give numbers, text, or a tuple of these."))
    return key


# ---- steps that read nothing which could be told ---------------------------------------------------------------------


def _made(inputs: Iterable[Input]) -> bool:
    return any(given.makers for given in inputs)


def _data(names: Iterable[str], known: Known) -> bool:
    return any(known.captured.names[name]["kind"] == "data" for name in names if name in known.captured.names)


def _told_otherwise(step: Step) -> bool:
    return step.options.cache_for_s is not None or step.options.cache_key is not None


# ---- modules ---------------------------------------------------------------------------------------------------------


class _Local:
    """The local modules of a run: content and imports of each package."""

    def __init__(self, modules: Mapping[str, Any]) -> None:
        self._content: dict[str, list[str]] = {}
        self._imports: dict[str, set[str]] = {}
        for name, info in sorted(modules.items()):
            root = name.partition(".")[0]
            self._content.setdefault(root, []).append(f"{name} {info['blob']}")
            self._imports.setdefault(root, set()).update(info["imports"])

    def parts(self, roots: Iterable[str]) -> Parts:
        """A part for each of these modules and of those which local ones among them import: by content, else by version."""
        found: Parts = {}
        seen: set[str] = set()
        queue = list(roots)
        while queue:
            root = queue.pop()
            if root in seen or root in sys.stdlib_module_names or root in ("__main__", "flowbook"):
                continue
            seen.add(root)
            if root in self._content:
                found[f"module {root}"] = canon.short_hash("\n".join(self._content[root]))
                queue.extend(self._imports[root])
            elif (version := _versions.of(root)) is not None:
                found[f"module {root}"] = canon.short_hash(version)
        return found


class _Versions:
    """Versions of installed packages, kept as long as no package was installed or removed."""

    def __init__(self) -> None:
        self._folders = {Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")}
        self._first = self._stamp = self._present()
        self._known: dict[str, str | None] = {}
        self._distributions: Mapping[str, list[str]] | None = None

    def of(self, root: str) -> str | None:
        present = self._present()
        if present != self._stamp:
            self._stamp, self._known, self._distributions = present, {}, None
        if root not in self._known:
            self._known[root] = self._look_up(root)
        return self._known[root]

    def _present(self) -> tuple[int, ...]:
        return tuple(folder.stat().st_mtime_ns for folder in sorted(self._folders) if folder.exists())

    def _look_up(self, root: str) -> str | None:
        """Of the installed package first: a worker imports that one, even where this kernel still has an older one loaded."""
        try:
            return importlib.metadata.version(root)
        except importlib.metadata.PackageNotFoundError:
            pass  # its package has another name
        loaded = getattr(sys.modules.get(root), "__version__", None)
        if isinstance(loaded, str) and self._stamp == self._first:
            return loaded
        if self._distributions is None:  # reads a file of every package, so it comes last
            self._distributions = importlib.metadata.packages_distributions()
        names = sorted(set(self._distributions.get(root, ())))
        return " ".join(f"{name} {importlib.metadata.version(name)}" for name in names) or (loaded if isinstance(loaded, str) else None)


_versions = _Versions()


def _hashed(parts: Parts) -> str:
    return canon.short_hash(json.dumps(sorted(parts.items())))
