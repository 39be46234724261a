"""metaflow: a foreach of no-ops and its join."""

from metaflow import FlowSpec, Parameter, step


class ForeachFlow(FlowSpec):
    count = Parameter("count", default=60)

    @step
    def start(self):
        self.items = list(range(self.count))
        self.next(self.each, foreach="items")

    @step
    def each(self):
        self.done = self.input
        self.next(self.gather)

    @step
    def gather(self, inputs):
        self.found = sum(task.done >= 0 for task in inputs)
        self.next(self.end)

    @step
    def end(self):
        assert self.found == self.count


if __name__ == "__main__":
    ForeachFlow()
