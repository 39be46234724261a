"""metaflow: one step with an array of noise as its artifact. A wrapper around its `save_artifacts` takes the time and the memory."""

import json
import resource
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy
from metaflow import FlowSpec, Parameter, current, step
from metaflow.datastore.task_datastore import TaskDataStore

save_artifacts = TaskDataStore.save_artifacts


def measured(self: Any, artifacts: Iterable[tuple[str, Any]], *args: Any, **kwargs: Any) -> Any:
    artifacts = list(artifacts)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    found = save_artifacts(self, artifacts, *args, **kwargs)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if any(name == "a" for name, _ in artifacts):
        report = {"save_s": seconds, "extra_mb": (after - before) * 1024 / 1e6, "run": current.run_id}
        Path("report.json").write_text(json.dumps(report))
    return found


TaskDataStore.save_artifacts = measured


class ArtifactFlow(FlowSpec):
    megabytes = Parameter("megabytes", default=256)

    @step(start=True, end=True)
    def make(self) -> None:
        self.a = numpy.random.default_rng(time.time_ns()).random(self.megabytes * 125_000)


if __name__ == "__main__":
    ArtifactFlow()
