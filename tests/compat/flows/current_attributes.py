"""What `current` tells inside a run and outside of one."""

# args: --tag nightly --tag b

import os

from metaflow import FlowSpec, current, step

OUTSIDE = current.is_running_flow


class CurrentFlow(FlowSpec):
    @step
    def start(self):
        self.outside = OUTSIDE
        self.inside = current.is_running_flow
        self.flow_is, self.step_is, self.user_is = current.flow_name, current.step_name, current.username
        self.space_is, self.retries = current.namespace, current.retry_count
        self.origin = current.origin_run_id
        self.tagged = sorted(tag for tag in current.tags if tag in ("nightly", "b"))
        self.path_fits = current.pathspec == f"{current.flow_name}/{current.run_id}/{current.step_name}/{current.task_id}"
        self.ids_are_text = [type(each).__name__ for each in (current.run_id, current.task_id)]
        self.temp = os.path.isdir(current.tempdir) if current.tempdir else None
        self.run_is = current.run.pathspec == f"CurrentFlow/{current.run_id}"
        self.task_is = current.task.pathspec == current.pathspec
        self.absent = current.get("no_such_thing", "default")
        self.contained = ("flow_name" in current, "project_name" in current)
        self.numbers = [1, 2]
        self.next(self.each, foreach="numbers")

    @step
    def each(self):
        self.step_is = current.step_name
        self.next(self.join)

    @step
    def join(self, inputs):
        self.steps = [each.step_is for each in inputs]
        self.next(self.end)

    @step
    def end(self):
        self.step_is = current.step_name


if __name__ == "__main__":
    CurrentFlow()
