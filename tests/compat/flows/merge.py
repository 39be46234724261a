"""merge_artifacts: all, include, exclude, and what is set before."""

from metaflow import FlowSpec, step


class MergeFlow(FlowSpec):
    @step
    def start(self):
        self.common, self.passed, self.changed = [1, 2], "p", 0
        self.next(self.a, self.b)

    @step
    def a(self):
        self.changed = 1
        self.only_a = "a"
        self.same = {"k": [1]}
        self.next(self.join)

    @step
    def b(self):
        self.changed = 2
        self.only_b = "b"
        self.same = {"k": [1]}
        self.next(self.join)

    @step
    def join(self, inputs):
        self.changed = inputs.a.changed + inputs.b.changed
        self.merge_artifacts(inputs)
        self.after_merge = (self.common, self.only_a, self.only_b)
        self.next(self.second)

    @step
    def second(self):
        self.next(self.c, self.d)

    @step
    def c(self):
        self.x, self.y, self.noise = 1, 1, "c"
        self.next(self.join_without)

    @step
    def d(self):
        self.x, self.y, self.noise = 1, 1, "d"
        self.next(self.join_without)

    @step
    def join_without(self, inputs):
        self.merge_artifacts(inputs, exclude=["noise", "y"])
        self.has = [hasattr(self, name) for name in ("x", "y", "noise", "common")]
        self.next(self.third)

    @step
    def third(self):
        self.next(self.e, self.f)

    @step
    def e(self):
        self.kept, self.dropped = 5, 6
        self.next(self.join_only)

    @step
    def f(self):
        self.kept, self.dropped = 5, 6
        self.next(self.join_only)

    @step
    def join_only(self, inputs):
        self.merge_artifacts(inputs, include=["kept", "passed"])
        self.has = [hasattr(self, name) for name in ("kept", "dropped", "passed", "common")]
        self.next(self.end)

    @step
    def end(self):
        self.final = (self.kept, self.passed)


if __name__ == "__main__":
    MergeFlow()
