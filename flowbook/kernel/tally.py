"""What the tasks of each step add up to, kept event by event, so that drawing a run costs the same for 10 tasks and for 10,000.

Only what a status shows and the state machine does not count: times, what the cache did, what tasks cost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from flowbook.spec.flow import task_name

POD_PHASES = (
    "queued",
    "scheduled",
    "pulling",
    "starting",
    "importing",
)  # of a pod, before its body runs; importing ends with what it reads
MOST_WARNINGS = 10
MOST_NOTES = 3  # of one step, different ones
MOST_REASONS = 100  # different ones that are told apart


@dataclass
class StepTally:
    """One step. Times are the engine's, seconds."""

    begun: float | None = None  # first launch
    ended: float | None = None  # last end of an attempt
    attempt: int = 0  # the highest
    launched: int = 0  # tasks of the body, their first attempts
    reasons: dict[str, int] = field(default_factory=dict)  # why the cache had nothing → tasks
    cached: int = 0  # tasks of the body
    origins: dict[str, int] = field(default_factory=dict)  # run that made a result which was taken over → tasks
    oldest: float | None = None  # when those were made, seconds since the epoch
    newest: float | None = None
    peak_mb: float | None = None  # of the hungriest task, 10**6 bytes
    cpu_s: float | None = None  # of all together
    waited: dict[str, float] = field(default_factory=dict)  # phase of a pod → seconds in it, of the pod that took longest
    notes: list[str] = field(default_factory=list)  # of launches: what was asked for and is not had


class Tally:
    """All steps of one run."""

    def __init__(self) -> None:
        self.steps: dict[str, StepTally] = {}
        self.warnings: list[str] = []
        self.more_warnings = False

    def of(self, step: str) -> StepTally:
        return self.steps.setdefault(step, StepTally())

    def apply(self, event: dict[str, Any]) -> None:
        """Take in one event of the log, after the state machine has accepted it."""
        kind = event["e"]
        if kind in ("launched", "reused", "succeeded", "failed", "lost", "stopped"):
            getattr(self, f"_on_{kind}", self._on_end)(self.of(event["step"]), event)

    def _on_launched(self, step: StepTally, event: dict[str, Any]) -> None:
        step.begun = event["at"] if step.begun is None else min(step.begun, event["at"])
        step.attempt = max(step.attempt, event.get("attempt", 0))
        step.notes += [note for note in event.get("notes", ()) if note not in step.notes][: MOST_NOTES - len(step.notes)]
        if event.get("attempt", 0) or event.get("part", "body") != "body":
            return
        step.launched += 1
        why = event.get("why")
        if why and (why in step.reasons or len(step.reasons) < MOST_REASONS):
            step.reasons[why] = step.reasons.get(why, 0) + 1

    def _on_reused(self, step: StepTally, event: dict[str, Any]) -> None:
        if event.get("part", "body") != "body":
            return
        step.cached += 1
        origin, made_at = str(event["run"]), event.get("made_at")
        step.origins[origin] = step.origins.get(origin, 0) + 1
        if made_at:
            step.oldest = made_at if step.oldest is None else min(step.oldest, made_at)
            step.newest = made_at if step.newest is None else max(step.newest, made_at)

    def _on_succeeded(self, step: StepTally, event: dict[str, Any]) -> None:
        self._on_end(step, event)
        peak_mb, cpu_s = event.get("peak_mb"), event.get("cpu_s")
        if peak_mb is not None and math.isfinite(peak_mb):
            step.peak_mb = max(peak_mb, step.peak_mb or 0.0)
        if cpu_s is not None and math.isfinite(cpu_s):
            step.cpu_s = cpu_s + (step.cpu_s or 0.0)
        for warning in event.get("warnings", ()):
            if len(self.warnings) == MOST_WARNINGS:
                self.more_warnings = True
                return
            self.warnings.append(f"{task_name(event['step'], tuple(event.get('index') or ()))}: {warning}")

    def _on_end(self, step: StepTally, event: dict[str, Any]) -> None:
        if step.begun is not None:
            step.ended = event["at"] if step.ended is None else max(step.ended, event["at"])
        for phase, seconds in pod_seconds(read_began(event.get("began"))).items():
            step.waited[phase] = max(seconds, step.waited.get(phase, 0.0))


def read_began(given: object) -> dict[str, float]:
    """When phases began, seconds after the launch, as an event or a hint tells it."""
    if not isinstance(given, dict):
        return {}
    known = (*POD_PHASES, "loading", "running", "saving")
    found = {name: at for name in known if isinstance(at := given.get(name), (int, float)) and not isinstance(at, bool)}
    return {name: at for name, at in found.items() if math.isfinite(at) and at >= 0}


def pod_seconds(began: Mapping[str, float]) -> dict[str, float]:
    """How long a pod was in each phase before its body ran; of the phase in which it ended that is not known.

    >>> pod_seconds({"queued": 0.0, "pulling": 0.5, "starting": 12.5, "loading": 13.0, "running": 13.5})
    {'queued': 0.5, 'pulling': 12.0, 'starting': 1.0}
    """
    order = sorted((at, phase) for phase, at in began.items() if phase in (*POD_PHASES, "running"))
    return {phase: later - at for (at, phase), (later, _) in pairwise(order)}
