"""metaflow: a foreach of no-ops and its join."""

from typing import Any

from metaflow import FlowSpec, Parameter, step


class ForeachFlow(FlowSpec):
    count = Parameter("count", default=60)

    @step
    def start(self) -> None:
        self.items = list(range(self.count))
        self.next(self.each, foreach="items")

    @step
    def each(self) -> None:
        self.done = self.input
        self.next(self.gather)

    @step
    def gather(self, inputs: Any) -> None:
        self.found = sum(task.done >= 0 for task in inputs)
        self.next(self.end)

    @step
    def end(self) -> None:
        assert self.found == self.count


if __name__ == "__main__":
    ForeachFlow()
