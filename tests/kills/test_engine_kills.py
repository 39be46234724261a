"""kill -9 of the engine, its fork server and its workers, each at 25 points of a run. The engine is driven over its socket."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from flowbook.engine.events import task_of
from flowbook.spec.flow import Foreach, Input, Step
from flowbook.store import layout
from tests.kills import story
from tests.kills.story import POINTS, Point, Story, gone, kill, points, until
from tests.test_engine_process import Engine, step

pytestmark = pytest.mark.slow  # all together
met: dict[str, list[bool]] = {"engine": [], "fork server": [], "worker": []}  # whether each kill met a run, or a task, under way


def flow() -> tuple[Step, ...]:
    """The steps of the story, as a kernel would write them."""
    xs = (Input("xs", ("start",)),)
    fan = Foreach("x", "xs", ("x",))
    return (
        step("start", story.START, saves="xs", hosted=("work",), key="start"),
        step("work", story.WORK, saves="y", foreach=fan, scope=("work",), host="start", plan_inputs=xs, key="work", plan_key="plan"),
        step("total", story.TOTAL_OF, saves="found", join=("work",), key="total"),
    )


class Drive:
    """One engine after another in the same folder, and one run after another in them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engine = Engine(folder)
        self.client = self.engine.connect()
        self.story = Story(self.engine.store, "demo", folder)
        self.number = 0

    @property
    def run(self) -> str:
        return str(self.number)

    def start(self, origin: str | None = None) -> None:
        """A new run; with `origin` one that resumes. Nothing else is taken over, so that every run does all its work."""
        self.number += 1
        if origin is None:
            self.story.new_run()
        self.engine.start(self.client, *flow(), run=self.run, fresh=True, origin=origin, max_parallel=2)
        self.follow()

    def adopt(self) -> None:
        """A new engine goes on with the run."""
        self.close()
        self.engine = Engine(self.folder)
        self.client = self.engine.connect()
        env, path = self.engine.env, [str(Path(__file__).parents[2])]
        self.client.send(do="run", flow="demo", run=self.run, env=env, cwd=str(self.folder), sys_path=path, adopt=True)
        self.follow()

    def follow(self) -> None:
        self.client.send(do="follow", flow="demo", run=self.run)

    def wait(self) -> str | None:
        self.client.until(lambda: self.client.ended(self.run) is not None, story.DEADLINE_S)
        return self.client.ended(self.run)

    def close(self) -> None:
        self.client.socket.close()
        self.engine.close()
        shutil.rmtree(self.engine.sockets, ignore_errors=True)


@pytest.mark.parametrize("point", points("engine"), ids=str)
def test_a_run_whose_engine_is_killed_is_adopted_whole(drive: Drive, point: Point) -> None:
    drive.start()
    drive.story.wait_for(drive.run, point)
    below = [*story.fork_servers(drive.engine.process.pid), *story.workers(drive.engine.process.pid)]
    drive.engine.process.kill()
    drive.engine.process.wait()
    until(lambda: gone(below))
    before = drive.story.seen(drive.run)
    met["engine"].append(len(before.committed) < story.TASKS)

    drive.adopt()

    assert drive.wait() == "succeeded"
    drive.story.check_whole(drive.run, before, again=2)


@pytest.mark.parametrize("point", points("fork server"), ids=str)
def test_a_run_whose_fork_server_is_killed_goes_on_by_itself(drive: Drive, point: Point) -> None:
    drive.start()
    drive.story.wait_for(drive.run, point)
    until(lambda: story.fork_servers(drive.engine.process.pid) or drive.story.over(drive.run))
    before = drive.story.seen(drive.run)
    met["fork server"].append(len(before.committed) < story.TASKS)
    for server in story.fork_servers(drive.engine.process.pid):
        kill(server)

    assert drive.wait() == "succeeded"
    drive.story.check_whole(drive.run, before, again=2)


@pytest.mark.parametrize("point", points("worker"), ids=str)
def test_a_run_whose_worker_is_killed_is_resumed(drive: Drive, point: Point) -> None:
    drive.start()
    drive.story.wait_for(drive.run, point)
    before = drive.story.seen(drive.run)
    found = story.workers(drive.engine.process.pid)
    while not found and not drive.story.over(drive.run):
        found = story.workers(drive.engine.process.pid)
    if found:
        kill(found[int(point.choice * len(found))])

    ended = drive.wait()

    failed = [e for e in drive.client.events(drive.run) if e["e"] == "failed"]
    met["worker"].append(bool(failed))
    if not failed:  # it had committed, and was about to end
        assert ended == "succeeded"
        drive.story.check_whole(drive.run, before, again=0)
        return
    assert ended == "failed" and len(failed) == 1
    assert failed[0]["error"]["reason"] == "killed" and "killed by SIGKILL" in failed[0]["error"]["message"]
    task = task_of(failed[0])
    assert f"{task.step} {task.index[0] if task.index else 0}" not in drive.story.committed(drive.run)
    drive.story.check_prefixes(drive.run)
    drive.story.check_not_again(before)
    kept = drive.story.seen(drive.run)

    drive.start(origin=drive.run)

    assert drive.wait() == "succeeded"
    drive.story.check_whole(drive.run, kept, again=1)


@pytest.mark.parametrize("what", met)
def test_most_kills_met_the_run_under_way(what: str) -> None:
    """What was killed when all was done, or a worker that had committed, proves little."""
    if len(met[what]) < POINTS:
        pytest.skip("says something only after all kills")

    assert sum(met[what]) >= POINTS // 3


def test_the_story_is_whole_when_nothing_is_killed(drive: Drive) -> None:
    drive.start()

    assert drive.wait() == "succeeded"
    drive.story.check_whole(drive.run, drive.story.seen(drive.run), again=0)


def test_the_checks_find_what_ran_again_and_what_is_missing(drive: Drive) -> None:
    drive.start()
    assert drive.wait() == "succeeded"
    before = drive.story.seen(drive.run)
    with (drive.folder / "ran.txt").open("ab") as ran:
        ran.write(b"work 7\n")
    with pytest.raises(AssertionError, match="ran again"):
        drive.story.check_whole(drive.run, before, again=1)

    drive.engine.store.delete(layout.commit("demo", drive.run, "work", (3,)))
    with pytest.raises(AssertionError, match="work 3"):
        drive.story.check_whole(drive.run, before, again=1)
