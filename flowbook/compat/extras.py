"""Small functions of Metaflow's that have no counterpart in flowbook: profile, parallel_map, and helpers that flows import."""

from __future__ import annotations

import contextlib
import getpass
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from typing import Any

from flowbook._version import __version__

_work: tuple[Callable[[Any], Any], list[Any]] | None = None  # what forked processes find; functions need not be picklable then


@contextlib.contextmanager
def profile(label: str, stats_dict: MutableMapping[str, float] | None = None) -> Iterator[None]:
    """Measure a block. Milliseconds are added to `stats_dict` under the label; without one, a line is printed."""
    if stats_dict is None:
        print(f"PROFILE: {label} starting")  # noqa: T201 - it is what the function is for
    began = time.perf_counter()
    try:
        yield
    finally:
        took_ms = 1000 * (time.perf_counter() - began)
        if stats_dict is None:
            print(f"PROFILE: {label} completed in {took_ms:.0f}ms")  # noqa: T201
        else:
            stats_dict[label] = stats_dict.get(label, 0) + took_ms


def parallel_map(func: Callable[[Any], Any], iterator: Iterable[Any], max_parallel: int | None = None, dir: str | None = None) -> list[Any]:
    """`func` of each item, in forked processes, at most `max_parallel` at a time (the number of cores), in the order of the items.

    Raises what `func` raises. `dir` means nothing here.
    """
    found = _mapped(func, list(iterator), max_parallel)
    return [value for _, value in sorted(found, key=lambda pair: pair[0])]


def parallel_imap_unordered(
    func: Callable[[Any], Any], iterator: Iterable[Any], max_parallel: int | None = None, dir: str | None = None
) -> Iterator[Any]:
    """As parallel_map, each result as soon as it is there."""
    return (value for _, value in _mapped(func, list(iterator), max_parallel))


def _mapped(func: Callable[[Any], Any], items: list[Any], max_parallel: int | None) -> Iterator[tuple[int, Any]]:
    global _work
    if not items:
        return
    outer, _work = _work, (func, items)
    try:
        pool = multiprocessing.get_context("fork").Pool(min(max_parallel or os.cpu_count() or 1, len(items)))
    finally:
        _work = outer
    with pool:
        yield from pool.imap_unordered(_call, range(len(items)))


def _call(place: int) -> tuple[int, Any]:
    assert _work is not None  # this process is a fork of the one that set it
    func, items = _work
    return place, func(items[place])


def namespaced_event_name(name: str) -> Callable[[], str]:
    """The name of an event within this project and branch: ``mfns.PROJECT.BRANCH.NAME``, as @trigger takes it."""
    from flowbook.worker.current import current

    def delayed() -> str:
        project = getattr(current, "project_name", None)
        return f"mfns.{project}.{current.branch_name}.{name}" if project else f"mfns.{name}"

    return delayed


def get_version(public: bool = False) -> str:
    """The version that runs: flowbook's."""
    return f"flowbook {__version__}"


def get_username() -> str | None:
    try:
        return os.environ.get("METAFLOW_USER") or getpass.getuser()
    except (KeyError, OSError):
        return None


def to_unicode(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def to_bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else to_unicode(value).encode("utf-8")


def is_stringish(value: Any) -> bool:
    return isinstance(value, str | bytes)
