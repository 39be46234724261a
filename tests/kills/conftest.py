"""The parts that a module's tests share: killing only some of them leaves the others in use for the next point."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def drives() -> Iterator[list[Any]]:
    """The module's `Drive`, if there is one."""
    found: list[Any] = []
    yield found
    for drive in found:
        drive.close()


@pytest.fixture
def drive(drives: list[Any], tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The `Drive` of this module; a test that fails takes it along, so that the next begins with a new one."""
    if not drives:
        drives.append(request.module.Drive(tmp_path_factory.mktemp("kills")))
    failed = request.session.testsfailed
    yield drives[0]
    if request.session.testsfailed != failed:
        drives.pop().close()
