"""How many attempts may run at once on one machine. Pure.

First come, first served: the first that does not fit waits, and those behind it wait with it. Letting small ones pass would
keep a machine a little fuller, and could keep a large one waiting for ever.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

from flowbook.spec.flow import Resources

T = TypeVar("T")
EPSILON = 1e-9  # ten tasks of 0.1 cores are one core


@dataclass(frozen=True)
class Capacity:
    """What a machine has. `memory_mb` is in MB of 10**6 bytes, None: not known, so it never keeps a task waiting."""

    cores: float = 1.0
    memory_mb: float | None = None
    gpus: int = 0


def capped(ask: Resources, capacity: Capacity) -> tuple[Resources, tuple[str, ...]]:
    """The ask cut to what the machine has, and a note for each cut: asking too much is never a reason not to run.

    >>> capped(Resources(cpu=1, gpu=1), Capacity(cores=4))
    (Resources(cpu=1, memory_mb=None, gpu=0), ('gpu 1 asked, none here: runs without',))
    """
    notes = []
    cpu, memory_mb, gpu = max(ask.cpu, 0.0), ask.memory_mb, max(ask.gpu, 0)
    if cpu > capacity.cores:
        notes.append(f"cpu {cpu:g} asked, {capacity.cores:g} here: runs with {capacity.cores:g}")
        cpu = capacity.cores
    if memory_mb is not None and capacity.memory_mb is not None and memory_mb > capacity.memory_mb:
        notes.append(f"memory {memory_mb} MB asked, {capacity.memory_mb:.0f} MB here: runs with that")
        memory_mb = int(capacity.memory_mb)
    if gpu > capacity.gpus:
        here = capacity.gpus or "none"
        notes.append(f"gpu {gpu} asked, {here} here: runs {f'with {here}' if capacity.gpus else 'without'}")
        gpu = capacity.gpus
    return replace(ask, cpu=cpu, memory_mb=memory_mb, gpu=gpu), tuple(notes)


def admit(
    ready: Iterable[tuple[T, Resources]], running: Iterable[Resources], capacity: Capacity, most: int | None = None
) -> list[tuple[T, Resources, tuple[str, ...]]]:
    """Those at the head of `ready` that may start now beside `running`: (what, granted, notes).

    Only memory that was asked for counts. `running` are grants of this function, of all runs on the machine; `most` is how
    many this run may still start (--max-parallel).
    """
    granted = list(running)
    cpu, gpu = sum(r.cpu for r in granted), sum(r.gpu for r in granted)
    memory_mb = sum(r.memory_mb or 0 for r in granted)
    found: list[tuple[T, Resources, tuple[str, ...]]] = []
    for what, ask in ready:
        if most is not None and len(found) >= most:
            break
        grant, notes = capped(ask, capacity)
        cpu, gpu, memory_mb = cpu + grant.cpu, gpu + grant.gpu, memory_mb + (grant.memory_mb or 0)
        if cpu > capacity.cores + EPSILON or gpu > capacity.gpus or (capacity.memory_mb is not None and memory_mb > capacity.memory_mb):
            break
        found.append((what, grant, notes))
    return found


def admit_pods(
    ready: Iterable[tuple[T, Resources]], running: Iterable[Resources], max_pods: int, max_gpus: int, most: int | None = None
) -> list[tuple[T, Resources]]:
    """The same for pods of a cluster, which has room by itself: under the ceilings of a run. An ask above them all starts alone.

    >>> admit_pods([("a", Resources(gpu=4)), ("b", Resources(gpu=1))], [], max_pods=9, max_gpus=2)
    [('a', Resources(cpu=1.0, memory_mb=None, gpu=4, disk_mb=None, shared_memory_mb=None))]
    """
    granted = list(running)
    pods, gpus = len(granted), sum(each.gpu for each in granted)
    found: list[tuple[T, Resources]] = []
    for what, ask in ready:
        if pods >= max_pods or (most is not None and len(found) >= most) or (gpus and ask.gpu and gpus + ask.gpu > max_gpus):
            break
        pods, gpus = pods + 1, gpus + ask.gpu
        found.append((what, ask))
    return found
