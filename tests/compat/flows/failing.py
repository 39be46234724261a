"""A step that fails ends the run; the steps before it keep what they made."""

# exit: 1

from metaflow import FlowSpec, step


class FailingFlow(FlowSpec):
    @step
    def start(self):
        self.made = 1
        self.next(self.middle)

    @step
    def middle(self):
        self.half = 2
        raise KeyError("no such thing")
        self.next(self.end)

    @step
    def end(self):
        self.never = True


if __name__ == "__main__":
    FailingFlow()
