"""A split inside a branch of a split."""

from metaflow import FlowSpec, step


class NestedBranchFlow(FlowSpec):
    @step
    def start(self):
        self.path = ["start"]
        self.next(self.a, self.b)

    @step
    def a(self):
        self.path = [*self.path, "a"]
        self.next(self.a1, self.a2)

    @step
    def a1(self):
        self.path = [*self.path, "a1"]
        self.next(self.join_a)

    @step
    def a2(self):
        self.path = [*self.path, "a2"]
        self.next(self.join_a)

    @step
    def join_a(self, inputs):
        self.path = [*inputs.a1.path, "+", *inputs.a2.path]
        self.next(self.join)

    @step
    def b(self):
        self.path = [*self.path, "b"]
        self.next(self.join)

    @step
    def join(self, inputs):
        self.paths = {"a": inputs.join_a.path, "b": inputs.b.path}
        self.lengths = sorted(len(branch.path) for branch in inputs)
        self.next(self.end)

    @step
    def end(self):
        self.done = len(self.paths)


if __name__ == "__main__":
    NestedBranchFlow()
