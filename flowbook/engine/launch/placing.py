"""Before a run starts: which of its steps go to a cluster, and whether that can be.

A door (command line, kernel) gives the spec that is about to be written, and what the settings say of the cluster; it gets the spec as
it has to be written, and what to tell the engine. Nothing is asked of the cluster here.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import mmap
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from flowbook.engine.launch.podspec import Ask, Cluster, asked, findings, hub_image, in_cluster, manifest, misshapen, pod_of
from flowbook.errors import DefinitionError, Finding, SettingError
from flowbook.spec.flow import Options, Spec
from flowbook.store import package
from flowbook.store.base import Store

Json = Any

NO_STORE = (
    "no cluster is set up here: the store is a folder of this machine, which pods do not reach. Nothing was run. "
    "Set FLOWBOOK_STORE=s3://BUCKET/PREFIX (docs/kubernetes.md); without it the steps run on this machine"
)
MOST_PODS, MOST_GPUS = 2000, 1_000_000  # with --yes; the first is what a namespace bears
LASTING = ("namespace", "image", "service_account", "secrets")  # of --with kubernetes, kept by a resume


def with_kubernetes(options: Options, arguments: Mapping[str, Json]) -> Options:
    """A step's options as --with kubernetes leaves them: what the step says itself counts."""
    if in_cluster(options):
        return options
    return dataclasses.replace(options, extra=(*options.extra, ("kubernetes", json.dumps(arguments, sort_keys=True))))


def placement_of(origin: Spec | None) -> Mapping[str, Json] | None:
    """The arguments of --with kubernetes with which a run was started, for a resume of it; None if some steps were local."""
    if origin is None or not origin.steps or not all(in_cluster(step.options) for step in origin.steps):
        return None
    last: Mapping[str, Json] = json.loads(dict(origin.steps[-1].options.extra)["kubernetes"])
    return {name: value for name, value in last.items() if name in LASTING}


def placed(
    spec: Spec,
    settings: Mapping[str, Json] | None,
    environ: Mapping[str, str],
    *,
    every: Mapping[str, Json] | None = None,
    yes: bool = False,
) -> tuple[Spec, dict[str, Json] | None]:
    """The spec, and what an engine must know of the cluster; None where every step runs on this machine.

    `settings`: Settings.cluster. `every`: the arguments of --with kubernetes, None without it. `yes`: the ceilings do not count.
    Raises DefinitionError with all that is wrong.
    """
    if every is not None:
        spec = dataclasses.replace(
            spec, steps=tuple(dataclasses.replace(step, options=with_kubernetes(step.options, every)) for step in spec.steps)
        )
    if not any(in_cluster(step.options) for step in spec.steps):
        return spec, None
    if settings is None:
        if every is None:
            return spec, None  # @kubernetes alone: it is said that it has no effect here
        raise DefinitionError(Finding("--with kubernetes", NO_STORE))
    told = dict(settings)
    if (image := hub_image(environ)) is not None:
        told.setdefault("image", image)
    if yes:
        told |= {"max_pods": MOST_PODS, "max_gpus": MOST_GPUS}
    try:
        cluster = Cluster.read(told)
    except SettingError as error:
        raise DefinitionError(Finding("kubernetes_tiers", str(error))) from None
    found = findings(spec.steps, cluster, environ, yes=yes)
    if found:
        raise DefinitionError(*found)
    return dataclasses.replace(spec, packages=packages_of(spec)), told


def shown_pod(flow: str, step: str, options: Options, settings: Mapping[str, Json] | None, environ: Mapping[str, str]) -> str:
    """The pod of a step's first task as it would be created, as JSON; boot.py and the store's words are left out. Raises DefinitionError."""
    if wrong := misshapen(step, options):
        raise DefinitionError(*wrong)
    told = dict(settings or {})
    cluster = Cluster.read({"image": hub_image(environ), **told})
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    env = {name: environ.get(name, "") if value is None else value for name, value in options.env}
    ask = Ask(flow, "RUN", step, resources=asked(options), timeout_s=options.timeout_s, env=env, **pod_of(options, python))
    pod = manifest(ask, cluster)
    container = pod["spec"]["containers"][0]
    container["command"] = [*container["command"][:2], "…"]
    container["env"] = [each for each in container["env"] if each["name"] != "FLOWBOOK_POD"]
    return json.dumps(pod, indent=2, ensure_ascii=False)


def packages_of(spec: Spec) -> dict[str, Json]:
    """The packages that the run's code imports, as they are here: root module → [distribution, version]."""
    roots: set[str] = set()
    for source in spec.sources.values():
        roots |= package.imported_roots(package.python_lines(source["source"]).encode())
    for info in spec.modules.values():
        roots |= set(info.get("imports", ()))
    for capture in spec.captures.values():
        roots |= {name.partition(".")[0] for name in capture.get("modules", ())}
        entry = capture.get("entry") or {}
        if entry.get("kind") == "module":
            roots.add(entry["module"].partition(".")[0])
    return _installed(roots)


def carried(spec: Spec, store: Store) -> Spec:
    """The spec with the content of its input files in the store, since pods do not see this machine's disk. Raises DefinitionError."""
    files = {}
    for path, known in spec.files.items():
        try:
            with open(path, "rb") as file:  # noqa: PTH123
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if known["size"] else b""
                blob = store.put_blob([memoryview(content)])
        except OSError as error:
            raise DefinitionError(Finding(f"--files {path}", f"it cannot be read: {error.strerror}", "Run it again.")) from None
        if blob != known["sha256"]:
            raise DefinitionError(Finding(f"--files {path}", "it has changed while the run was being started", "Run it again."))
        files[path] = {**known, "blob": blob}
    return dataclasses.replace(spec, files=files)


def _installed(roots: Iterable[str]) -> dict[str, Json]:
    names = importlib.metadata.packages_distributions()
    found = {}
    for root in sorted(set(roots) & names.keys() - {"flowbook", "metaflow"}):
        name = names[root][0]
        found[root] = [name, importlib.metadata.version(name)]
    return found
