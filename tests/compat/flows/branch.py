"""A split and its join, by name and by place."""

from metaflow import FlowSpec, step


class BranchFlow(FlowSpec):
    @step
    def start(self):
        self.common = "kept"
        self.value = 1
        self.next(self.left, self.right)

    @step
    def left(self):
        self.value = self.value + 10
        self.only_left = "l"
        self.next(self.join)

    @step
    def right(self):
        self.value = self.value + 100
        self.only_right = "r"
        self.next(self.join)

    @step
    def join(self, inputs):
        self.by_name = (inputs.left.value, inputs.right.value)
        self.by_place = sorted(branch.value for branch in inputs)
        self.first = min(inputs[n].value for n in range(2))
        self.count = len(list(inputs))
        self.has_common = hasattr(self, "common")
        self.value = max(branch.value for branch in inputs)
        self.common = inputs.left.common
        self.only_left = inputs.left.only_left
        self.right_has_left = hasattr(inputs.right, "only_left")
        self.next(self.end)

    @step
    def end(self):
        self.final = (self.value, self.common, self.only_left, hasattr(self, "only_right"))


if __name__ == "__main__":
    BranchFlow()
