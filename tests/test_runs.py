"""What a kernel asks of a store to take up a run of another one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flowbook.kernel import runs
from flowbook.store.base import Aged
from flowbook.store.memory import MemoryStore


class Far(MemoryStore):
    """A store where each question is a request."""

    mapped = False

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def exists(self, key: str) -> bool:
        self.asked.append(f"exists {key}")
        return super().exists(key)

    def aged(self, prefix: str) -> Iterator[Aged]:
        self.asked.append(f"list {prefix}")
        return iter(sorted(super().aged(prefix), key=lambda each: each.key))


def test_one_list_of_a_run_tells_of_all_its_objects() -> None:
    store = Far()
    for name in ("a/1", "a/2", "b/1"):
        store.create(f"flows/{name}", name.encode() * 2)
    there = runs.Listed(store)

    assert [there.size("flows/a/", f"flows/a/{i}") for i in range(4)] == [0, 6, 6, 0]
    assert there.size("flows/b/", "flows/b/1") == 6
    assert store.asked == ["list flows/a/", "list flows/b/"]


def test_what_a_list_that_was_cut_does_not_reach_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "LISTED_OBJECTS", 2)
    store = Far()
    for i in (1, 3, 5, 6):
        store.create(f"flows/a/{i}", b"x" * i)
    there = runs.Listed(store)

    assert [there.size("flows/a/", f"flows/a/{i}") for i in range(1, 8)] == [1, 0, 3, 0, 5, 6, 0]
    assert store.asked == ["list flows/a/", *(f"exists flows/a/{i}" for i in (4, 5, 6, 7))]


def test_of_a_folder_each_object_is_asked_for() -> None:
    store = Far()
    store.mapped = True
    store.create("flows/a/1", b"xy")
    there = runs.Listed(store)

    assert [there.size("flows/a/", f"flows/a/{i}") for i in (1, 2)] == [2, 0]
    assert store.asked == ["exists flows/a/1", "exists flows/a/2"]
