"""Why a pod does not get on stands beside its task within 5 s of the cluster knowing it: what nodes lack, an image, a quota.

When the cluster knew it is told by its own times, which are whole seconds.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from flowbook.engine.events import Task
from flowbook.kernel import display
from flowbook.kernel.engine import RunView
from flowbook.kernel.panel_data import PanelData
from flowbook.kernel.runs import Run
from flowbook.spec.flow import Resources, Spec, Step, from_json
from flowbook.store import layout
from tests.cluster.cluster import S3, Cluster, Namespace
from tests.cluster.stages import credentials, make_secret, stage_on
from tests.launchers.stage import Stage, cell, until

pytestmark = pytest.mark.slow
LIMIT_S = 5.0
GRAIN_S = 1.0  # of the cluster's times


@pytest.fixture
def stage(cluster: Cluster, namespace: Namespace, bucket: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    make_secret(namespace, "store", credentials(bucket))
    return stage_on(cluster, namespace, bucket, tmp_path, monkeypatch)


def told(stage: Stage, step: Step) -> tuple[str, float]:
    """The first reason that those who follow the run hear, and when, by the clock of the wall. The run is stopped then."""
    heard: list[float] = []

    async def scene() -> None:
        run = stage.run(step)
        driven = asyncio.create_task(stage.follow(run))
        await until(lambda: driven.done() or any(m.get("why") for m in stage.said), "the reason")
        heard.append(time.time())
        run.stop()
        await driven

    stage.complete(scene())
    why = [m["why"] for m in stage.said if m.get("why")]
    assert why, stage.log()
    return why[0], heard[0]


def seen(stage: Stage) -> tuple[str, dict[str, Any]]:
    """What somebody reads who follows the run at the moment of the first reason: in the status, and in the panel."""
    view = RunView(from_json(Spec, json.loads(stage.store.get(layout.spec("demo", "1")))))
    data = PanelData(Run(view.spec, view))
    view.watchers.append(data.heard)
    for event in stage.log()[:2]:
        view.apply(event)
    view.hint(next(m for m in stage.said if m.get("why")))
    assert view.state.tasks[Task("start")].state == "launched"
    return display.status_text(Run(view.spec, view)), data.shown(time.time()).__dict__


def at(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def noted(namespace: Namespace, wanted: Callable[[dict[str, Any]], bool]) -> float:
    """When the cluster first noted such an event."""
    found: list[dict[str, Any]] = [event for event in namespace.kube.get("events")["items"] if wanted(event)]
    assert found, namespace.kube.get("events")["items"]
    return min(at(event.get("firstTimestamp") or event["eventTime"]) for event in found)


def assert_said(stage: Stage, *words: str, phase: str) -> None:
    status, panel = seen(stage)
    task = panel["tasks"][0]
    assert task["phase"] == phase and all(word in task["why"] for word in words), task
    assert all(word in panel["head"]["notes"][0] for word in words), panel["head"]["notes"]
    assert f" {phase} " in status and all(word in status for word in words), status


def test_what_nodes_lack_stands_beside_the_task_in_five_seconds(stage: Stage, namespace: Namespace) -> None:
    why, when = told(stage, cell("start", "x = 1", resources=Resources(cpu=900, memory_mb=128)))

    knew = noted(namespace, lambda event: event["reason"] == "FailedScheduling")
    assert when - knew <= LIMIT_S + GRAIN_S
    assert "Insufficient cpu" in why
    assert_said(stage, "no node for cpu 900", phase="queued")


def test_an_image_that_cannot_be_pulled_stands_beside_the_task_in_five_seconds(stage: Stage, namespace: Namespace) -> None:
    why, when = told(stage, cell("start", "x = 1", image="missing.invalid/image:1"))

    knew = noted(namespace, lambda event: event["reason"] == "Failed" and "missing.invalid/image:1" in event["message"])
    assert when - knew <= LIMIT_S + GRAIN_S
    assert "missing.invalid/image:1" in why and "--image" in why
    assert_said(stage, "missing.invalid/image:1", phase="pulling")


def test_a_quota_that_is_used_up_stands_beside_the_task_in_five_seconds(stage: Stage, namespace: Namespace) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"}, "spec": {"hard": {"pods": "0"}}}
    namespace.kube.create(quota)
    why, when = told(stage, cell("start", "x = 1"))

    knew = next(event["at"] for event in stage.log() if event["e"] == "launched")
    assert when - knew <= LIMIT_S
    assert "few" in why and "pods=0" in why
    assert_said(stage, "the quota of namespace", phase="queued")
