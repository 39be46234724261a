"""What of Metaflow's public interface is held against Metaflow itself, and where flowbook differs on purpose. The one list.

docs/metaflow.md is made of it: ``python -m tests.compat.features`` writes the tables there; a test holds that they are in force.
A difference is a pattern over the keys of a flattened record (`flat`), such as ``1: each[0] made`` or ``2: finished``: what fits may
differ, all else must be equal, and a pattern that fits no difference is refused, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

DOC = Path(__file__).parent.parent.parent / "docs" / "metaflow.md"


@dataclass(frozen=True)
class Difference:
    """Where a flow file gives something else here, and why that is meant."""

    flow: str
    where: tuple[str, ...]
    why: str

    def covers(self, key: str) -> bool:
        return any(fnmatchcase(key, pattern.replace("[", "[[]")) for pattern in self.where)


FEATURES: dict[str, str] = {  # flow file → what it uses
    "linear": "steps one after the other, artifacts of all plain types",
    "branch": "`self.next(self.a, self.b)`, joins, `inputs.step`, `inputs[i]`",
    "nested_branch": "a split inside a branch",
    "foreach": "`foreach=`, `self.input`, `self.index`, `self.foreach_stack()`",
    "foreach_kinds": "foreach over tuples, ranges and strings; items that are None",
    "nested_foreach": "a foreach inside a foreach",
    "foreach_branch": "a split in each item of a foreach",
    "wide": "`--max-workers`",
    "empty_foreach": "a foreach over nothing",
    "merge": "`merge_artifacts(inputs, include=, exclude=)`",
    "merge_conflict": "what `merge_artifacts` refuses, and its exceptions",
    "switched": "a switch, `condition=`, also in each item of a foreach",
    "two_step_switch": "branches of a switch that are several steps long, keys that are numbers",
    "recursive": "a step that goes on to itself",
    "named_ends": "`@step(start=True)`, `@step(end=True)`",
    "one_step": "a flow of one step",
    "parameters": "`Parameter` of all types, `separator`, `JSONType`, defaults that are functions",
    "from_environment": "`METAFLOW_RUN_<NAME>`, required parameters",
    "included": "`IncludeFile`, text and bytes",
    "configured": "`Config`, `config_expr`, parsers, configs in decorators",
    "current_attributes": "`current`: names, ids, `run`, `task`, `tags`, `get`, `in`",
    "retried": "`@retry`, `current.retry_count`",
    "caught": "`@catch`, with and without `var`, and with `@retry`",
    "caught_process": "`@catch` where the process is killed",
    "timed_out": "`@timeout` with `@catch`",
    "surroundings": "`@resources`, `@environment`, `@secrets` in the text",
    "carded": "`@card`, `current.card`, every component, `get_cards`",
    "with_option": "`--with NAME:key=value`",
    "own_decorators": "`user_step_decorator`, `UserStepDecorator`",
    "skipping": "a decorator that skips or replaces a step",
    "mutated": "`FlowMutator`, `StepMutator`",
    "projected": "`@project` and its names in `current`",
    "tools": "`parallel_map`, `parallel_imap_unordered`, `profile`, `@schedule`, `@trigger_on_finish`",
    "exit_hooks": "`@exit_hook`",
    "class_attributes": "attributes of the class, helper methods, properties, static and class methods",
    "private": "artifacts that begin with `_`",
    "base_class": "steps and parameters of a base class in another file",
    "helper_modules": "modules beside the flow that import metaflow, objects of their classes as artifacts and items",
    "in_place": "artifacts that are changed in place, shared, or merged and then changed",
    "conditional_read": "`getattr` and `hasattr` of artifacts, artifacts set by `setattr` and in helpers",
    "arrays": "arrays and tables of numpy and pandas",
    "big": "artifacts of 20 MB",
    "raised": "`MetaflowException` and what derives from it",
    "failing": "a step that fails",
    "resumed": "`resume` of a run that failed",
    "resumed_from": "`resume STEP`",
    "switch_shapes": "splits, foreach and switches behind a switch; a switch in a branch",
    "recursive_foreach": "in each item a step that goes on to itself",
    "nested_three": "three foreach inside each other",
    "logged": "what tasks print, `Task.stdout`, `Task.loglines`",
    "parameter_names": "defaults that are functions of the context, `current.parameter_names`",
    "projected_branch": "`--branch`",
    "task_exception": "`Task.exception` of a failed run",
    "spellings": "aliases of metaflow, wrapped methods (`functools.wraps`), odd layouts, `del self.x`",
    "own_cards": "components of one's own, cards by id, `Table.from_dataframe`",
    "configured_class": "configs in decorators of the class and in parameters",
    "processes": "processes, threads and subprocesses in steps",
    "foreach_arrays": "foreach over arrays, rows and objects; arrays that are merged",
    "deep_base": "bases of bases, `super()` in helpers, decorators of inherited steps",
    "tagged": "`--tag`, tags that a step changes",
    "client_reads": "`Flow`, `Run`, `Step`, `Task`, `DataArtifact`, `namespace` inside a step",
}

_CAUGHT = "`Task.successful` is True for a task whose error was caught: it is done, and the flow went on. `Task.exception` has the error."
_FAILED = "A failed attempt leaves no artifacts, only its error, output, cards and checkpoints."
_ROUNDS = "A step that goes on to itself does so in one task, without the cost of a start each time; a retry begins with the first round."
_FINISHED = "A failed run is `finished`; Metaflow's local metadata cannot tell."

DIFFERENCES: tuple[Difference, ...] = (
    Difference("caught", ("1: divide[0] successful", "1: unnamed[0] successful"), _CAUGHT),
    Difference("caught_process", ("1: killed[0] successful", "1: leaves[0] successful"), _CAUGHT),
    Difference("timed_out", ("1: start[0] successful",), _CAUGHT),
    Difference(
        "timed_out",
        ("1: start[0] began", "1: end[0] began", "1: start[0] printed"),
        "A timeout ends the process, in C code and threads, too. What the step had set is gone: use `@checkpoint`.",
    ),
    Difference("failing", ("1: middle[0] half", "1: middle[0] made"), _FAILED),
    Difference("failing", ("1: finished",), _FINISHED),
    Difference("task_exception", ("1: finished",), _FINISHED),
    Difference("resumed", ("1: join[0] *",), _FAILED),
    Difference("resumed", ("1: finished",), _FINISHED),
    Difference(
        "current_attributes",
        ("1: *outside",),
        "In a task `current` is known while the file is imported there, too, not only inside the step.",
    ),
    Difference(
        "nested_foreach",
        ("1: join_cells[*",),
        "In the join of an inner foreach `self.input` is the item of the outer one; Metaflow gives None there.",
    ),
    Difference(
        "helper_modules",
        ("1: each[*] models",),
        "`self.input` is the item itself: changing it in place does not change the list that it came from.",
    ),
    Difference("recursive", ("1: loop[*", "1: loop tasks"), _ROUNDS),
    Difference("recursive_foreach", ("1: turn[*", "1: turn tasks"), _ROUNDS),
    Difference(
        "resumed_from",
        ("2: end[0] ran",),
        "`resume STEP` runs that step again, and of what follows it all that depends on what it makes; Metaflow runs all of it.",
    ),
    Difference("empty_foreach", ("1: *",), "A foreach over nothing is allowed: the join gets no inputs. Metaflow fails."),
)


# ---- records ----------------------------------------------------------------------------------------------------------------


def flat(record: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """A record as one level of key → text: ``1: each[0] made``, ``1: each tasks``, ``2: exit``."""
    return dict(pair for number, command in enumerate(record, 1) for pair in _flat(f"{number}:", command))


def _flat(number: str, command: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    run = command["run"]
    yield f"{number} exit", str(command["exit"])
    yield f"{number} successful", str(run["successful"])
    yield f"{number} finished", str(run["finished"])
    for step, tasks in run["steps"].items():
        yield f"{number} {step} tasks", str(len(tasks))
        for place, task in enumerate(tasks):
            yield f"{number} {step}[{place}] successful", str(task["successful"])
            yield f"{number} {step}[{place}] printed", "\n".join(task["printed"])
            yield from ((f"{number} {step}[{place}] {name}", value) for name, value in task["artifacts"].items())


def unlike(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str | None, str | None]]:
    """Where two records differ: key → both values, None for one that is not there."""
    left, right = flat(one), flat(other)
    return {key: (left.get(key), right.get(key)) for key in sorted({*left, *right}) if left.get(key) != right.get(key)}


# ---- the documentation --------------------------------------------------------------------------------------------------------


def equal_table() -> str:
    rows = ["| feature | here | flow file |", "|---|---|---|"]
    for flow, feature in FEATURES.items():
        whys = dict.fromkeys(each.why for each in DIFFERENCES if each.flow == flow)
        state = f"differs on purpose: {' '.join(whys)}" if whys else "equal"
        rows.append(f"| {feature} | {state} | `{flow}.py` |")
    return "\n".join(rows)


def refused_table() -> str:
    from flowbook.compat import table

    rows = ["| name | what to do |", "|---|---|"]
    reasons: dict[str, list[str]] = {}
    for name, why in [*table.REFUSED.items(), *table._SUBMODULES.items()]:
        reasons.setdefault(why, []).append(name)
    rows += [f"| {', '.join(f'`{name}`' for name in names)} | {why} |" for why, names in reasons.items()]
    return "\n".join(rows)


TABLES = {"equal": equal_table, "refused": refused_table}


def written(text: str) -> str:
    """The document with its tables in force."""
    for name, table in TABLES.items():
        pattern = rf"(<!-- {name}: [^\n]*-->\n\n).*?(\n\n<!-- end -->)"
        text = re.sub(pattern, lambda found, table=table: found[1] + table() + found[2], text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    DOC.write_text(written(DOC.read_text()))
