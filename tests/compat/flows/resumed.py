"""A run that fails, and is resumed: what succeeded is taken over, the rest runs again."""

# args: --mark 1
# exit: 1
# then: resume

import os

from metaflow import FlowSpec, Parameter, current, step


class ResumedFlow(FlowSpec):
    mark = Parameter("mark", default=0)

    @step
    def start(self):
        self.numbers = [1, 2]
        self.made_as = current.origin_run_id
        self.next(self.each, foreach="numbers")

    @step
    def each(self):
        self.square = self.input**2
        self.made_as = current.origin_run_id
        self.next(self.join)

    @step
    def join(self, inputs):
        self.squares = [each.square for each in inputs]
        if not os.path.exists("mended"):
            with open("mended", "w"):
                pass
            raise ValueError("the first run fails here")
        self.is_resumed = current.origin_run_id is not None
        self.seen_mark = self.mark
        self.next(self.end)

    @step
    def end(self):
        self.total = sum(self.squares)


if __name__ == "__main__":
    ResumedFlow()
