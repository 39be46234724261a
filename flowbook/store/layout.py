"""The keys of a project's store: one function per kind of object. Everything that writes or reads a key asks here.

    store.json                              the format's version
    flows/FLOW/RUN/run.json                 the spec; creating it takes the run's number
    flows/FLOW/RUN/run.log/000017.json          events, one writer
    flows/FLOW/RUN/run.log.json             the log in one object, in stores where many cost requests; can be made again
    flows/FLOW/RUN/run.requests/NAME.json       what a reader asks of the run's engine (stop)
    flows/FLOW/RUN/run.keys.json            the keys of its tasks, for the cache; can be made again from the log
    flows/FLOW/RUN/run.tags/000003.json     the tags of a run after a change of them, see tags.py
    flows/FLOW/RUN/run.deleted              all that is left of a removed run that was the newest: its number is not given again
    flows/FLOW/RUN/STEP/TASK.COMMIT         created once: the result of a task
    flows/FLOW/RUN/STEP/TASK/K/output       what attempt K printed (bytes, stdout and stderr as they came)
    flows/FLOW/RUN/STEP/TASK/K/display.json rich output of attempt K
    flows/FLOW/RUN/STEP/TASK/K/order.json   what attempt K is to do, where its worker is in a pod of a cluster
    flows/FLOW/RUN/STEP/TASK/K/end.json     how attempt K ended, as its pod says
    flows/FLOW/RUN/STEP/TASK/K/card-ID.json a card of attempt K, as it last was
    flows/FLOW/RUN/STEP/TASK/checkpoints/000007.json    a checkpoint: what it holds, and where; created once
    flows/FLOW/RUN/STEP/TASK/checkpoints/K/HASH         a piece of the checkpoints that attempt K made, by content
    index/FLOW/runs.json                    every ended run at a glance; can be made again, see glance.py
    index/FLOW/tags/RUN.000003              says that the tags of a run were changed, or are about to be
    probes/NAME/N                           objects with which `%flow doctor` tries the store, removed at once; of its pod, a store of its own
    blobs/HH/HASH                           artifacts, items, code, by content (sha256 in hex)

A step name has no dot, so none of the names with run. can meet one. FLOW, STEP and RUN are identifiers checked at definition; no other part of a key comes from a user.
"""

from __future__ import annotations

import re

Index = tuple[int, ...]

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}\Z")  # steps
FLOW_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\Z")  # flows: notebook names, already reduced to this

S3_URL = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9_=!+-][A-Za-z0-9_=!+.-]*)*/?\Z")  # bucket and prefix

STORE = "store.json"


def task_key(index: Index, part: str = "body") -> str:
    """TASK in a key: ``0`` outside any fan-out, ``2`` or ``2.5`` inside; a plan task ends in ``plan``.

    >>> task_key(()), task_key((2, 5)), task_key((2,), "plan")
    ('0', '2.5', '2.plan')
    """
    name = ".".join(map(str, index)) or "0"
    return name if part == "body" else f"{name}.plan"


def run_order(run: str) -> tuple[bool, int, str]:
    """A key for sorting runs, oldest first: by number, then those with another name."""
    return not run.isdigit(), int(run) if run.isdigit() else 0, run


def flow_prefix(flow: str) -> str:
    return f"flows/{flow}/"


def run_prefix(flow: str, run: str) -> str:
    return f"flows/{flow}/{run}/"


def spec(flow: str, run: str) -> str:
    return f"flows/{flow}/{run}/run.json"


def keys(flow: str, run: str) -> str:
    return f"flows/{flow}/{run}/run.keys.json"


def log(flow: str, run: str, number: int) -> str:
    return f"flows/{flow}/{run}/run.log/{number:06d}.json"


def log_prefix(flow: str, run: str) -> str:
    return f"flows/{flow}/{run}/run.log/"


def log_index(flow: str, run: str) -> str:
    return f"flows/{flow}/{run}/run.log.json"


def request(flow: str, run: str, name: str) -> str:
    return f"flows/{flow}/{run}/run.requests/{name}.json"


def request_prefix(flow: str, run: str) -> str:
    return f"flows/{flow}/{run}/run.requests/"


def deleted(flow: str, run: str) -> str:
    return f"flows/{flow}/{run}/run.deleted"


def tags(flow: str, run: str, number: int) -> str:
    return f"flows/{flow}/{run}/run.tags/{number:06d}.json"


def tags_folder(flow: str, run: str) -> str:
    return f"flows/{flow}/{run}/run.tags"


def glance(flow: str) -> str:
    return f"index/{flow}/runs.json"


def tag_mark(flow: str, run: str, number: int) -> str:
    return f"index/{flow}/tags/{run}.{number:06d}"


def tag_marks_folder(flow: str) -> str:
    return f"index/{flow}/tags"


def commit(flow: str, run: str, step: str, index: Index, part: str = "body") -> str:
    return f"flows/{flow}/{run}/{step}/{task_key(index, part)}.COMMIT"


def output(flow: str, run: str, step: str, index: Index, attempt: int, part: str = "body") -> str:
    return f"flows/{flow}/{run}/{step}/{task_key(index, part)}/{attempt}/output"


def display(flow: str, run: str, step: str, index: Index, attempt: int, part: str = "body") -> str:
    return f"flows/{flow}/{run}/{step}/{task_key(index, part)}/{attempt}/display.json"


def order(flow: str, run: str, step: str, index: Index, attempt: int, part: str = "body") -> str:
    return f"flows/{flow}/{run}/{step}/{task_key(index, part)}/{attempt}/order.json"


def end(flow: str, run: str, step: str, index: Index, attempt: int, part: str = "body") -> str:
    return f"flows/{flow}/{run}/{step}/{task_key(index, part)}/{attempt}/end.json"


def checkpoint_prefix(flow: str, run: str, step: str, index: Index) -> str:
    return f"flows/{flow}/{run}/{step}/{task_key(index)}/checkpoints/"


def checkpoint(flow: str, run: str, step: str, index: Index, number: int) -> str:
    return f"{checkpoint_prefix(flow, run, step, index)}{number:06d}.json"


def checkpoint_chunk(flow: str, run: str, step: str, index: Index, attempt: int, digest: str) -> str:
    """Not among the blobs: there nothing younger than a day goes away, and a training would fill the disk meanwhile."""
    return f"{checkpoint_prefix(flow, run, step, index)}{attempt}/{digest}"


def card(flow: str, run: str, step: str, index: Index, attempt: int, id: str) -> str:
    """A card by the name that `card_name` gives."""
    return f"{card_prefix(flow, run, step, index, attempt)}{id}.json"


def card_prefix(flow: str, run: str, step: str, index: Index, attempt: int) -> str:
    """What the keys of all cards of an attempt begin with."""
    return f"flows/{flow}/{run}/{step}/{task_key(index)}/{attempt}/card-"


def card_name(id: str) -> str:
    """A card's id as it stands in a key.

    >>> card_name("loss curves/2")
    'loss_curves_2'
    """
    return re.sub(r"[^A-Za-z0-9_-]", "_", id)[:64] or "card"


def probe(name: str, number: int) -> str:
    return f"probes/{name}/{number}"


def blob(digest: str) -> str:
    return f"blobs/{digest[:2]}/{digest}"
