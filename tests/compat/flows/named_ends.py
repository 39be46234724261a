"""First and last step by any name."""

from metaflow import FlowSpec, step


class NamedEndsFlow(FlowSpec):
    @step(start=True)
    def prepare(self):
        self.x = 1
        self.next(self.finish)

    @step(end=True)
    def finish(self):
        self.y = self.x + 1


if __name__ == "__main__":
    NamedEndsFlow()
