"""A flow that reads its own earlier run and itself through the client."""

# again: yes

from metaflow import Flow, FlowSpec, Run, Step, Task, current, default_namespace, get_namespace, namespace, step


class ClientReadsFlow(FlowSpec):
    @step
    def start(self):
        try:
            earlier = Flow("ClientReadsFlow").latest_successful_run
        except Exception:
            earlier = None
        self.before = 0 if earlier is None else earlier.data.count
        self.count = self.before + 1
        self.names = ["a", "b"]
        self.next(self.each, foreach="names")

    @step
    def each(self):
        self.mine = self.input
        self.next(self.join)

    @step
    def join(self, inputs):
        self.merge_artifacts(inputs, exclude=["mine"])
        self.next(self.end)

    @step
    def end(self):
        run = Run(f"ClientReadsFlow/{current.run_id}")
        self.finished = (run.finished, run.successful)
        self.steps_seen = sorted(each.id for each in run)
        self.mine_seen = sorted(task.data.mine for task in run["each"])
        one = Step(f"{run.pathspec}/start").task
        self.start_count = (one.data.count, one["count"].data, Task(one.pathspec).artifacts.count.data)
        self.successful = (one.successful, one.finished, one.exception)
        self.count_in = ("count" in one, "absent" in one)
        self.space = (get_namespace(), namespace(None), get_namespace(), default_namespace())
        self.latest = Flow("ClientReadsFlow").latest_run.id == current.run_id
        self.runs_seen = len(list(Flow("ClientReadsFlow").runs()))
        self.parents = [each.id for each in Step(f"{run.pathspec}/join").parent_steps]
        self.print_of_start = one.stdout


if __name__ == "__main__":
    ClientReadsFlow()
