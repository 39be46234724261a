"""Stories of runs in pods: one body of tests, for a fake cluster and for a real one. Those who import it have a fixture `stage`."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import pytest

from flowbook.engine.launch import kubernetes
from flowbook.spec.flow import Card, Resources, Retry
from flowbook.store import layout
from tests.launchers.stage import Stage, cell, named, sweep, until


def test_steps_in_a_line_run_in_pods_and_their_results_come_back(stage: Stage) -> None:
    run = stage.drive(cell("start", "x = [1, 2]\nprint('hello')", saves="x"), cell("end", "y = sum(x)", reads="x:start", saves="y"))

    assert run.state is not None and run.state.ended == "succeeded", stage.happened()
    assert stage.value("y", "end") == 3
    assert "hello\n" in stage.printed("start")


def test_a_fan_out_has_a_pod_for_each_item_and_a_join(stage: Stage) -> None:
    run = stage.drive(*sweep(3))

    assert run.state is not None and run.state.ended == "succeeded", stage.happened()
    assert [stage.value("y", "train", i) for i in range(3)] == [0, 10, 20]
    assert stage.value("total", "best") == 30


def test_an_error_of_the_body_is_told_with_its_line_and_retried(stage: Stage) -> None:
    body = "from flowbook import current\nprint('attempt', current.retry_count)\nif not current.retry_count:\n    1 / 0\nx = current.retry_count"
    stage.drive(cell("start", body, saves="x", retry=Retry(2, 0)))

    assert stage.happened() == ["run_started", "launched start", "failed start", "launched start", "succeeded start", "run_ended"]
    error = stage.error("start")
    assert (error["type"], error["line"], error["reason"]) == ("ZeroDivisionError", 4, "error")
    assert stage.value("x", "start") == 1
    assert stage.printed("start").startswith("attempt 0") and stage.printed("start", attempt=1) == "attempt 1\n"


def test_a_killed_process_is_told_as_killed(stage: Stage) -> None:
    stage.drive(cell("start", "import os, signal\nprint('so far', flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"))

    assert stage.error("start")["reason"] == "killed"
    assert "so far" in stage.error("start")["output_tail"]


def test_a_step_beyond_its_time_is_stopped_and_told(stage: Stage) -> None:
    stage.drive(cell("start", "import time\nprint('begun', flush=True)\ntime.sleep(600)", timeout_s=4))

    assert stage.error("start")["reason"] == "timeout"


def test_a_pod_taken_away_is_launched_again_and_no_retry_is_used_up(stage: Stage) -> None:
    body = "import time\nfrom flowbook import current\nprint('begun', flush=True)\nif not current.retry_count:\n    time.sleep(600)\nx = 1"

    async def scene() -> None:
        run = stage.run(cell("start", body, saves="x"))
        driven = asyncio.create_task(run.drive())
        await until(lambda: any("begun" in live.tail()[0] for live in run.live.values()), "the first attempt")
        stage.cluster.evict(stage.cluster.names()[0])
        await driven

    stage.complete(scene())

    assert stage.happened() == ["run_started", "launched start", "lost start", "launched start", "succeeded start", "run_ended"]
    assert stage.value("x", "start") == 1


def test_a_stopped_run_stops_its_pod(stage: Stage) -> None:
    async def scene() -> None:
        run = stage.run(cell("start", "import time\nprint('begun', flush=True)\ntime.sleep(600)"))
        driven = asyncio.create_task(run.drive())
        await until(lambda: any("begun" in live.tail()[0] for live in run.live.values()), "the attempt")
        stage.store.create(layout.request("demo", "1", "stop"), json.dumps({"ask": "stop"}).encode())
        run.poke()
        await driven

    stage.complete(scene())

    assert stage.log()[-1]["state"] == "stopped"
    asyncio.run(until(lambda: not stage.cluster.names(), "the end of the pod"))


def test_a_run_whose_engine_died_is_gone_on_with_in_the_same_pods(stage: Stage) -> None:
    body = "import time\nprint('begun', flush=True)\ntime.sleep(8)\nx = 5"
    before: list[str] = []

    async def first() -> None:
        run = stage.run(cell("start", body, saves="x"))
        driven = asyncio.create_task(run.drive())
        await until(lambda: any("begun" in live.tail()[0] for live in run.live.values()), "the attempt")
        before.extend(stage.cluster.names())
        assert run.leave()  # as on SIGTERM; to the pod a killed engine is the same
        with contextlib.suppress(asyncio.CancelledError):
            await driven

    stage.complete(first())
    assert stage.happened() == ["run_started", "launched start"]
    names = set(before)

    async def second() -> None:
        run = stage.run(adopt=True)
        driven = asyncio.create_task(run.drive())
        await until(lambda: run.live or (run.state is not None and run.state.ended), "the attempt")
        names.update(stage.cluster.names())
        await driven

    stage.complete(second())

    assert stage.happened() == ["run_started", "launched start", "succeeded start", "run_ended"]
    assert stage.value("x", "start") == 5
    assert names == set(before)  # no second pod was made


def test_an_ask_that_no_node_has_is_told_while_it_waits_and_given_up_in_the_end(stage: Stage) -> None:
    stage.drive(cell("start", "x = 1", resources=Resources(cpu=900, memory_mb=128)), settings={"pending_s": 6})

    why = [m["why"] for m in stage.said if m.get("why")]
    assert why and "no node for cpu 900" in why[0] and "Insufficient cpu" in why[0]
    error = stage.error("start")
    assert error["reason"] == "lost" and "no node for cpu 900" in error["message"] and "kubernetes_pending" in error["message"]


def test_the_keys_of_secrets_of_the_cluster_are_variables_of_the_body(stage: Stage) -> None:
    stage.cluster.secret("db", {"DB_USER": "ann", "DB_PORT": "5432"})
    stage.cluster.secret("keys", {"TOKEN": "t"})
    body = "import os\nfound = [os.environ[name] for name in ('DB_USER', 'DB_PORT', 'TOKEN')]"
    stage.drive(cell("start", body, saves="found", secrets=named("kubernetes:keys", "kubernetes:db")))

    assert stage.value("found", "start") == ["ann", "5432", "t"]


def test_a_secret_that_the_cluster_has_not_is_named_at_once(stage: Stage) -> None:
    stage.drive(cell("start", "print('ran')", secrets=named("kubernetes:nowhere")))

    message = stage.error("start")["message"]
    assert "the pod needs the secret 'nowhere', which its namespace has not" in message and "--secret kubernetes:NAME" in message, message


def test_a_namespace_that_is_not_there_is_named(stage: Stage) -> None:
    stage.drive(cell("start", "x = 1"), settings={"namespace": "nowhere"})

    assert "nowhere" in stage.error("start")["message"] and "namespace" in stage.error("start")["message"]


def test_packages_that_the_image_lacks_are_listed_before_the_body_runs(stage: Stage) -> None:
    packages = {"numpy": ["numpy", "2.1.0"], "absent_one": ["absent-one", "1.0"]}
    stage.drive(cell("start", "print('ran')\nimport absent_one\nx = 1"), packages=packages)

    error = stage.error("start")
    assert error["type"] == "ImageError" and "absent-one, which the image has not" in error["message"]
    assert '--pip "absent-one==1.0"' in error["message"] and "numpy" not in error["message"]
    assert "ran" not in stage.printed("start")


def test_another_python_in_the_image_is_told(stage: Stage) -> None:
    stage.drive(cell("start", "x = 1", saves="x"), python="3.99.1")

    assert any("the run was started with 3.99.1" in warning for e in stage.log() if e["e"] == "succeeded" for warning in e["warnings"])


def test_what_is_shown_is_kept(stage: Stage) -> None:
    stage.drive(cell("start", "class A:\n    def _repr_html_(self):\n        return '<b>bold</b>'\ndisplay(A())\nx = 1", saves="x"))

    shown = json.loads(stage.store.get(layout.display("demo", "1", "start", (), 0)))
    assert shown["frames"][0]["data"]["text/html"] == "<b>bold</b>"


def test_phases_are_told_in_their_order(stage: Stage) -> None:
    stage.drive(cell("start", "import time\ntime.sleep(1)\nx = 1", saves="x"))

    order = ["queued", "scheduled", "pulling", "starting", "importing", "running", "saving"]
    told = stage.phases("start")
    assert told[0] == "queued" and "starting" in told
    assert [order.index(phase) for phase in told] == sorted(order.index(phase) for phase in told)
    began = next(event for event in stage.log() if event["e"] == "succeeded")["began"]
    assert set(told) <= began.keys() and list(began.values()) == sorted(began.values()), "for those who did not follow it"


def test_that_a_setting_scales_the_asks_is_told_with_each_launch(stage: Stage) -> None:
    stage.drive(cell("start", "x = 1", resources=Resources(cpu=0.1, memory_mb=256)), settings={"scale": 0.5})

    told = [event["notes"] for event in stage.log() if event["e"] == "launched"]
    assert told == [["pods get 0.5 of the cpu, memory and disk asked for (kubernetes_scale)"]]


def test_nothing_is_left_in_the_cluster_when_a_run_has_ended(stage: Stage) -> None:
    stage.drive(*sweep(2))

    asyncio.run(until(lambda: not stage.cluster.names(), "the end of the pods"))


def test_a_private_or_missing_image_ends_the_attempt_with_what_to_do(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes, "IMAGE_S", 5.0)  # what a registry that cannot be reached says is no proof
    stage.drive(cell("start", "x = 1", image="missing/image:1"))

    message = stage.error("start")["message"]
    assert "missing/image:1" in message and "--image" in message


def test_a_card_is_seen_while_its_step_runs(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a stream where ports can be forwarded, else as it is stored. The step would run on for ever: it is stopped then."""
    monkeypatch.setattr(kubernetes, "SNAPSHOT_S", 0.3)
    late: list[dict[str, Any]] = []
    body = "import time\ni = 0\nwhile True:\n    i += 1\n    card.metric('loss', i)\n    time.sleep(0.2)"

    async def scene() -> None:
        run = stage.run(cell("start", body, cards=(Card("blank", refresh_interval_s=0.5),)))
        driven = asyncio.create_task(stage.follow(run))
        await until(lambda: driven.done() or any(m.get("f") == "card" for m in stage.said), "a card")
        late.extend(run.until_now())
        stage.store.create(layout.request("demo", "1", "stop"), json.dumps({"ask": "stop"}).encode())
        run.poke()
        await driven

    stage.complete(scene())

    card = next((m for m in stage.said if m.get("f") == "card"), None)
    assert card is not None, stage.log()
    assert card["step"] == "start" and card["card"]["state"] == "running" and "loss" in json.dumps(card["card"])
    assert [m["f"] for m in late][:1] == ["phase"] and late[0]["began"].keys() >= {"queued", "starting"}, "for who follows it from now on"
