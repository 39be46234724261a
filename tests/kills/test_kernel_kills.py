"""kill -9 of the kernel at 25 points of a run: the run goes on, and a new kernel has its result after `%flow attach`."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from flowbook.store.files import FilesStore
from tests.conftest import end_processes_of
from tests.kernel.conftest import Notebook
from tests.kills import story
from tests.kills.story import POINTS, Point, Story, points

pytestmark = pytest.mark.slow  # all together
met: list[bool] = []  # whether each kill met the run under way


class Drive:
    """One kernel after another of the same notebook: the one that takes up a run starts the next, and is killed in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.story = Story(FilesStore(folder / "store" / "default"), "book", folder)
        self.number = 0
        self.kernel = self.open()

    @property
    def run(self) -> str:
        return str(self.number)

    def open(self) -> Notebook:
        """Input is possible, as in JupyterLab, so that `%flow run` returns at once."""
        kernel = Notebook(self.folder, allow_stdin=True)
        kernel.ok("%load_ext flowbook")
        return kernel

    def start(self) -> None:
        self.number += 1
        self.story.new_run()
        for cell in story.CELLS:
            self.kernel.ok(cell)
        self.kernel.start("%flow run --max-parallel 2")  # not waited for: the kernel may die within this cell

    def kill_kernel(self) -> None:
        os.kill(self.kernel.manager.provisioner.pid, signal.SIGKILL)  # type: ignore[union-attr]
        self.kernel.close()

    def close(self) -> None:
        self.kernel.close()
        end_processes_of(self.folder / "store")
        for entry in self.folder.glob("store/default/local/engines/*.json"):
            shutil.rmtree(json.loads(entry.read_bytes())["folder"], ignore_errors=True)


@pytest.mark.parametrize("point", points("kernel"), ids=str)
def test_a_run_whose_kernel_is_killed_is_taken_up_by_the_next(drive: Drive, point: Point) -> None:
    drive.start()
    drive.story.wait_for(drive.run, point)
    before = drive.story.seen(drive.run)
    drive.kill_kernel()
    met.append(len(before.committed) < story.TASKS)

    drive.kernel = drive.open()
    drive.kernel.ok(f"%flow attach {drive.run} --wait")

    assert drive.kernel.value("found, work[7].y") == f"({story.TOTAL}, 49)"
    drive.story.check_whole(drive.run, before, again=0)


def test_most_kills_met_the_run_under_way() -> None:
    if len(met) < POINTS:
        pytest.skip("says something only after all kills")

    assert sum(met) >= POINTS // 3
