"""The words of a flow as values: Step, Input, Spec; and their JSON form, which is `run.json`.

A Spec is everything a worker or a scheduler needs to know of a run, decided before it starts. Nothing here computes:
`body.py` reads one cell, `graph.py` links steps, the kernel captures values, and the three meet in a Spec.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from typing import Any

Json = Any


@dataclass(frozen=True)
class Foreach:
    """``--foreach "i, lr in enumerate(rates)"``: target ``i, lr``, expr ``enumerate(rates)``."""

    target: str
    expr: str
    names: tuple[str, ...]  # the names that the target binds, in order


@dataclass(frozen=True)
class Resources:
    """What one attempt asks for. Megabytes are of 10**6 bytes, None: not asked."""

    cpu: float = 1.0
    memory_mb: int | None = None
    gpu: int = 0
    disk_mb: int | None = None
    shared_memory_mb: int | None = None


@dataclass(frozen=True)
class Retry:
    """How often a failed attempt is tried again, and after how long a wait.

    The n-th wait (n from 0) is `minutes_between_retries * backoff**n`, at most `max_minutes`, longer or shorter by up to the share
    `jitter`. `only` and `unless` are names of exception classes, with or without their module; a base class counts, too.
    """

    times: int = 0
    minutes_between_retries: float = 2.0
    backoff: float = 1.0
    jitter: float = 0.0
    max_minutes: float | None = None
    only: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()


@dataclass(frozen=True)
class Card:
    """One card of a step. `options` is JSON, as given to `@card(options=…)`."""

    type: str = "default"
    id: str | None = None
    refresh_interval_s: float = 5.0
    timeout_s: float = 45.0
    options: str = ""
    save_errors: bool = True
    customize: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """`load_policy`: "fresh" (of this task's own attempts), "eager" (of earlier runs, too), "none"."""

    load_policy: str = "fresh"


@dataclass(frozen=True)
class Options:
    """The options of one step cell, parsed. The defaults are those of a cell without options."""

    after: tuple[str, ...] = ()
    join: tuple[str, ...] = ()
    foreach: Foreach | None = None
    when: str | None = None
    always: bool = False
    out: tuple[str, ...] | None = None  # --out a,b: only these; None: all public names
    out_add: tuple[str, ...] = ()  # --out +x
    files: tuple[str, ...] = ()  # glob patterns
    retry: Retry = Retry()
    timeout_s: float | None = None
    catch: str | None = None
    min_ok: str | None = None  # "90%" or "12", as written; see min_ok_count
    resources: Resources = Resources()
    env: tuple[tuple[str, str | None], ...] = ()  # value None: taken from the kernel's environment at launch, never stored
    flow: str | None = None
    run: bool = False
    no_cache: bool = False  # a result of another run is never taken, a resume excepted
    cache_for_s: float | None = None  # a result may be so old
    cache_key: str | None = None  # --cache-key EXPR: evaluated in the kernel when the run starts
    cards: tuple[Card, ...] = ()
    checkpoint: Checkpoint | None = None
    secrets: tuple[str, ...] = ()  # where a step's secret variables come from, see spec/decorators.py; never a value
    print_exception: bool = True  # of what --catch caught
    image: str | None = None  # of the step's pod, where pods are of a cluster; None: as the settings say
    pip: tuple[str, ...] = ()  # requirements that such a pod installs first
    spot: bool = False  # such a pod may run on a node that can be taken away
    extra: tuple[tuple[str, str], ...] = ()  # decorators that only other places heed: name → JSON of their arguments


@dataclass(frozen=True)
class Input:
    """A name a step reads: from the last of `makers` that happened (nearest first), else from the captured value.

    `required` is False when the body may assign the name itself before it reads it. `slot` is where it is needed: the
    body, or the expression of --foreach/--when (evaluated before the step's tasks exist).
    """

    name: str
    makers: tuple[str, ...] = ()
    captured: bool = False
    required: bool = True


@dataclass(frozen=True)
class Next:
    """Where a method of a FlowSpec goes on: what its `self.next` says. A step after which the flow ends has none.

    `kind` is "linear", "split", "foreach" or "switch". `name` is the artifact of a foreach (None: the call gives the items
    themselves) or of a switch. `default`: the step of a switch where no case fits.
    """

    kind: str
    steps: tuple[str, ...] = ()
    name: str | None = None
    default: str | None = None


def next_token(step: str) -> str:
    """The pseudo-artifact with which a step of a FlowSpec hands over to `step`. A switch makes only that of the case which it took.

    It is in `Step.saves` of the steps before and in `Step.inputs` of `step`, and it is no artifact of any COMMIT: the COMMIT's
    "next" lists the steps that were handed over to.
    """
    return f"next:{step}"


def is_token(name: str) -> bool:
    return name.startswith("next:")


@dataclass(frozen=True)
class Step:
    """One step, linked: all that a scheduler and a worker need.

    `source` is padded with blank lines so that its line numbers are those of the raw cell. `scope` are the foreach
    steps whose items this step runs per, outermost first, itself included when it has --foreach. `index` of a task of
    this step is a tuple of len(scope) ints.
    """

    name: str
    source: str
    filename: str  # key of Spec.sources; given to compile()
    label: str  # "Cell In[7]"
    options: Options = Options()
    scope: tuple[str, ...] = ()
    inputs: tuple[Input, ...] = ()  # what the body reads
    plan_inputs: tuple[Input, ...] = ()  # what --foreach and --when read
    host: str | None = None  # the step whose worker evaluates this step's plan before its COMMIT; None: a task of its own
    hosted: tuple[str, ...] = ()  # the steps whose plans this step's worker evaluates
    saves: tuple[str, ...] = ()  # names saved if bound at the end of the body
    certain: tuple[str, ...] = ()  # those of `saves` that are bound whenever the body ends normally
    unsaved: tuple[tuple[str, str], ...] = ()  # names bound but not saved: (name, why)
    captures: tuple[str, ...] = ()  # keys of Spec.captures to bind before the body, with what those need
    params: tuple[str, ...] = ()
    watch: tuple[tuple[str, str], ...] = ()  # loaded names that the body must leave alone: (name, "error" | "warn")
    key: str = ""  # of all that the kernel knows a result depends on: code, captures, parameters, …; "" is never reused
    plan_key: str = ""  # the same of --foreach and --when
    parts: dict[str, str] = field(default_factory=dict, hash=False)  # what `key` is made of: name → hash, so that a miss can be explained
    method: str | None = None  # the FlowSpec class whose method of the step's name is the body; `source` is then empty
    next: Next | None = None  # of a method
    joins: bool = False  # a method that takes `inputs`; `options.join` names the steps before it
    merges: bool = False  # it calls merge_artifacts: any artifact of the steps that it joins may come out of it

    @property
    def planned(self) -> bool:
        """Whether --foreach or --when must be evaluated before the step's tasks are known."""
        return self.options.foreach is not None or self.options.when is not None

    @property
    def base(self) -> tuple[str, ...]:
        """The scope in which --foreach is evaluated: the scope without the step itself."""
        return self.scope[:-1] if self.options.foreach else self.scope


@dataclass(frozen=True)
class Spec:
    """What `run.json` holds. Entries (`Json`) are artifact entries as in a COMMIT; see docs/internals.md."""

    flow: str
    run: str
    steps: tuple[Step, ...]  # in the order of the notebook
    params: dict[str, Json] = field(default_factory=dict)  # name → entry
    captures: dict[str, Json] = field(default_factory=dict)  # name → {entry, kind, origin, key, needs, modules, deep?}
    sources: dict[str, Json] = field(default_factory=dict)  # filename → {label, source}
    modules: dict[str, Json] = field(default_factory=dict)  # local modules: dotted name → {file, blob, package, imports}
    setup: tuple[str, ...] = ()  # filenames of %%flowsetup cells, in order
    setup_captures: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()  # modules that a process may import before it knows its task
    files: dict[str, Json] = field(default_factory=dict)  # path → {size, mtime_ns, sha256}
    tags: tuple[str, ...] = ()
    target: str | None = None  # `%flow run STEP`: that step; the others are those it needs
    max_parallel: int | None = None
    origin: str | None = None  # the run that this one resumes
    fresh: bool = False  # take no result of another run, the origin's excepted
    life: str = ""  # a random word of the kernel that started the run; a resume keeps that of its origin
    notebook: str | None = None
    user: str | None = None
    started_at: float | None = None  # seconds since the epoch, for people only
    python: str = ""
    flowbook: str = ""  # its version
    program: str | None = None  # the file of a FlowSpec, a key of `sources`: each worker runs it as its __main__
    project: dict[str, Json] = field(default_factory=dict)  # of @project: project_name, branch_name, project_flow_name, is_production, …
    constants: dict[str, Json] = field(default_factory=dict)  # name → entry: public attributes of the FlowSpec class itself
    packages: dict[str, Json] = field(default_factory=dict)  # of a run in pods: root module → [distribution, version] where it was started
    previews: str = "full"  # the setting: what of values is stored beside them for people to see (store/preview.py)
    compat: bool = False  # `import metaflow` means flowbook in this run's tasks
    version: int = 1

    def step(self, name: str) -> Step:
        return next(step for step in self.steps if step.name == name)


def to_json(value: Any) -> Json:
    """A dataclass of this module as plain JSON types; fields that hold their default are left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value) if getattr(value, f.name) != _default(f)}
    if isinstance(value, tuple):
        return [to_json(item) for item in value]
    return value


def from_json(cls: Any, data: Json) -> Any:
    """The inverse of `to_json`; unknown fields (of a later minor version) are ignored."""
    if isinstance(cls, types.UnionType):
        if data is None:
            return None
        cls = next(arg for arg in typing.get_args(cls) if arg is not type(None))
    origin = typing.get_origin(cls)
    if origin is tuple:
        args = typing.get_args(cls)
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(from_json(args[0], item) for item in data)
        return tuple(from_json(arg, item) for arg, item in zip(args, data, strict=True))
    if isinstance(cls, type) and dataclasses.is_dataclass(cls):
        hints = typing.get_type_hints(cls)
        names = {f.name for f in dataclasses.fields(cls)}
        return cls(**{key: from_json(hints[key], value) for key, value in data.items() if key in names})
    return data


def _default(f: dataclasses.Field[Any]) -> Any:
    if f.default is not dataclasses.MISSING:
        return f.default
    if f.default_factory is not dataclasses.MISSING:
        return f.default_factory()
    return dataclasses.MISSING


def task_name(step: str, index: tuple[int, ...]) -> str:
    """How people write a task: ``train[2]``, ``inner[2,5]``, ``start``.

    >>> task_name("inner", (2, 5))
    'inner[2,5]'
    """
    return f"{step}[{','.join(map(str, index))}]" if index else step
