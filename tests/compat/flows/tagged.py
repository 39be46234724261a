"""Tags, given at the start and changed while the run goes on."""

# args: --tag first --tag second

from metaflow import FlowSpec, Run, current, namespace, step


class TaggedFlow(FlowSpec):
    @step
    def start(self):
        self.given = sorted(set(current.tags) & {"first", "second", "third"})
        run = Run(f"TaggedFlow/{current.run_id}")
        run.add_tag("third")
        run.replace_tag("second", "2nd")
        run.add_tags(["fourth", "fifth"])
        run.remove_tag("fifth")
        self.next(self.end)

    @step
    def end(self):
        namespace(None)
        run = Run(f"TaggedFlow/{current.run_id}")
        self.user_tags = sorted(run.user_tags)
        self.of_system = sorted(tag.split(":")[0] for tag in run.system_tags if tag.split(":")[0] in ("user",))
        self.all = set(run.tags) == set(run.user_tags) | set(run.system_tags)


if __name__ == "__main__":
    TaggedFlow()
