"""The tags of a run: those it began with stand in its spec, and can be changed at any time, by anybody, also while it runs.

Every change is one object, `run.tags/000003.json`: all tags as they are after it. Objects are created, never replaced, and
numbered without gaps: who finds his number taken reads what the other wrote and changes that. So of any number of writers none
loses the tag of another, and the last object alone says what holds. Before a change a mark is left in the index of the flow
(`index/FLOW/tags/RUN.000003`), so that one listing tells of which runs the tags have to be read again (glance.py).
"""

from __future__ import annotations

import difflib
import json
import time
from collections.abc import Iterable, Sequence
from typing import Any

from flowbook.errors import DefinitionError, Finding, StoreError, StoreMissing
from flowbook.store import layout
from flowbook.store.base import Store

MOST_TAGS = 50  # of a run, those that people gave
LONGEST = 500  # characters of a tag


def read(store: Store, flow: str, run: str, begun: Sequence[str]) -> tuple[tuple[str, ...], int]:
    """The tags of a run, and how often they were changed. `begun`: those of its spec. Raises StoreError, naming the key, if damaged."""
    number = last_change(store, flow, run)
    return (_read_change(store, flow, run, number), number + 1) if number >= 0 else (tuple(begun), 0)


def last_change(store: Store, flow: str, run: str) -> int:
    """The number of the last change, -1 if there is none."""
    names = (name.removesuffix(".json") for name in store.names(layout.tags_folder(flow, run)))
    return max((int(name) for name in names if name.isdigit()), default=-1)


def change(
    store: Store,
    flow: str,
    run: str,
    *,
    add: Iterable[str] = (),
    remove: Iterable[str] = (),
    system: Iterable[str] = (),
    strict: bool = False,
    user: str | None = None,
) -> tuple[str, ...]:
    """Remove tags, then add some, in one step; gives all that the run has then.

    `system` are the tags that nobody can change. Raises DefinitionError for what is no tag, for a system tag that is to be removed,
    for more than MOST_TAGS, and, if `strict`, for a tag to be removed that is not there; StoreMissing if there is no such run.
    """
    wanted, unwanted, fixed = checked(add), checked(remove), set(system)
    if kept := [tag for tag in unwanted if tag in fixed]:
        raise DefinitionError(Finding(f"run {run} of {flow}", f"the tag {kept[0]!r} is flowbook's own and stays", "Remove others."))
    while True:
        begun = begun_with(store, flow, run)
        present, number = read(store, flow, run, begun)
        if strict:
            _must_be_there(f"run {run} of {flow}", unwanted, present)
        after = [tag for tag in present if tag not in unwanted]
        after += [tag for tag in wanted if tag not in after and tag not in fixed]
        if tuple(after) == present:
            return present
        _check_number(f"run {run} of {flow}", after, present)
        store.create(layout.tag_mark(flow, run, number), b"")  # first: a mark without a change does no harm
        data = {"tags": after, "at": time.time(), "user": user}
        if store.create(layout.tags(flow, run, number), json.dumps(data).encode()):
            return tuple(after)


def checked(tags: Iterable[str]) -> tuple[str, ...]:
    """The tags, each once. Raises DefinitionError with all that is wrong with them."""
    if isinstance(tags, str):
        tags = (tags,)
    found, findings = dict.fromkeys(tags), []
    for tag in found:
        if not isinstance(tag, str):
            findings.append(Finding("tags", f"{tag!r} is a {type(tag).__name__}", "A tag is a text, such as 'paper' or 'model:v2'."))
        elif not tag.strip() or not tag.isprintable():
            findings.append(Finding("tags", f"{tag!r} is empty or has characters that cannot be seen", "Use letters, digits, ':', '-'."))
        elif len(tag) > LONGEST:
            findings.append(Finding("tags", f"{tag[:40]!r}… has {len(tag)} characters", f"A tag may have {LONGEST}."))
    if findings:
        raise DefinitionError(*findings)
    return tuple(found)


def begun_with(store: Store, flow: str, run: str) -> tuple[str, ...]:
    """The tags with which a run was started. Raises StoreMissing if there is no such run, StoreError if its spec is damaged."""
    key = layout.spec(flow, run)
    return tuple(map(str, _object(store, key).get("tags") or ()))


def mark_number(name: str) -> tuple[str, int] | None:
    """Run and number of a mark's name, None for anything else.

    >>> mark_number("12.000003"), mark_number("notes")
    (('12', 3), None)
    """
    run, dot, number = name.rpartition(".")
    return (run, int(number)) if dot and run and number.isdigit() else None


def forget_marks(store: Store, flow: str, runs: Iterable[str]) -> None:
    """Remove the marks of runs that are gone."""
    gone = set(runs)
    for name in list(store.names(layout.tag_marks_folder(flow))) if gone else ():
        mark = mark_number(name)
        if mark is not None and mark[0] in gone:
            store.delete(layout.tag_mark(flow, *mark))


def _read_change(store: Store, flow: str, run: str, number: int) -> tuple[str, ...]:
    key = layout.tags(flow, run, number)
    found = _object(store, key).get("tags")
    if not isinstance(found, list) or not all(isinstance(tag, str) for tag in found):
        raise StoreError(f"{key} is damaged: it does not hold the tags of a run. Remove it: the change before it holds then.")
    return tuple(found)


def _object(store: Store, key: str) -> dict[str, Any]:
    try:
        found = json.loads(store.get(key))
    except StoreMissing:
        raise
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise StoreError(f"{key} is damaged: it is not a JSON object.")
    return found


def _must_be_there(where: str, unwanted: Sequence[str], present: Sequence[str]) -> None:
    findings = []
    for tag in unwanted:
        if tag not in present:
            near = difflib.get_close_matches(tag, present, 1)
            hint = f"Did you mean {near[0]!r}?" if near else f"It has: {', '.join(present) or 'none that can be removed'}."
            findings.append(Finding(where, f"it has no tag {tag!r}", hint))
    if findings:
        raise DefinitionError(*findings)


def _check_number(where: str, after: Sequence[str], before: Sequence[str]) -> None:
    if len(after) > MOST_TAGS and len(after) > len(before):
        raise DefinitionError(
            Finding(where, f"it would have {len(after)} tags, and may have {MOST_TAGS}", "Remove some first, or use a parameter instead.")
        )
