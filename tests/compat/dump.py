"""What a run made, as JSON on stdout, read through the client: ``python dump.py FLOW RUN``, in Metaflow's environment or in ours.

In ours `metaflow` is flowbook, so the same lines read both. A value is written as a text that two processes agree on: arrays and
tables with their types, large values by their hash, objects by class and attributes.
"""

from __future__ import annotations

import datetime
import decimal
import hashlib
import json
import sys

try:
    from flowbook import compat
except ImportError:
    pass
else:
    compat.install()

from metaflow import Run, namespace

FORM = 1  # of what is written here; another number when it changes, so that kept records count no more
LONG = 300  # characters of a value; a longer one is written as its hash
IGNORED = ("name",)  # Metaflow keeps the flow's name as an artifact


def shown(value):
    """A value as a text."""
    text = _shown(value)
    if len(text) <= LONG:
        return text
    return f"{type(value).__name__} of {len(text)} characters, {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _shown(value):
    if isinstance(value, str | bytes | int | float | complex | range | datetime.date | decimal.Decimal) or value is None:
        return repr(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_shown(key)}: {_shown(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_shown, value)) + "]"
    if isinstance(value, tuple):
        return "(" + "".join(f"{_shown(item)}, " for item in value) + ")"
    if isinstance(value, set | frozenset):
        return f"{type(value).__name__} " + ", ".join(sorted(map(_shown, value)))
    return _shown_object(value)


def _shown_object(value):
    module, kind = type(value).__module__.partition(".")[0], type(value).__name__
    if kind == "ndarray":
        return f"array {value.dtype} {value.shape} {value.tolist()}"
    if kind == "DataFrame":
        return f"DataFrame {dict(value.dtypes.astype(str))} {value.to_csv()!r}"
    if kind == "Series":
        return f"Series {value.name} {value.dtype} {value.tolist()}"
    if module in ("numpy", "pandas"):
        return f"{kind} {value}"
    if isinstance(value, BaseException) or hasattr(value, "exception"):
        return "an error"
    return f"{kind} {_shown(vars(value))}"


def task_of(task):
    artifacts = {artifact.id: shown(artifact.data) for artifact in task if artifact.id not in IGNORED}
    return {
        "successful": task.successful,
        "artifacts": dict(sorted(artifacts.items())),
        "printed": task.stdout.strip().splitlines(),
    }


def run_of(pathspec):
    namespace(None)
    run = Run(pathspec)
    steps = {step.id: sorted((task_of(task) for task in step), key=json.dumps) for step in run}
    return {"successful": run.successful, "finished": run.finished, "steps": dict(sorted(steps.items()))}


if __name__ == "__main__":
    print(json.dumps(run_of(f"{sys.argv[1]}/{sys.argv[2]}")))
