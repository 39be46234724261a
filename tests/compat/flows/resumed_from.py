"""A run that succeeded is resumed from a step on: that step and what follows run again, the ones before do not."""

# then: resume middle

from metaflow import FlowSpec, current, step


def noted(name):
    """Each step that runs writes a line; what is taken over writes none."""
    with open("ran.txt", "a") as file:
        file.write(f"{name}\n")


class ResumedFromFlow(FlowSpec):
    @step
    def start(self):
        noted("start")
        self.made = "in start"
        self.next(self.middle)

    @step
    def middle(self):
        noted("middle")
        self.origin = current.origin_run_id is not None
        self.next(self.end)

    @step
    def end(self):
        noted("end")
        with open("ran.txt") as file:
            self.ran = file.read().split()


if __name__ == "__main__":
    ResumedFromFlow()
