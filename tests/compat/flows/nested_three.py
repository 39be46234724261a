"""Three foreach inside each other, and joins that merge."""

from metaflow import FlowSpec, step


class NestedThreeFlow(FlowSpec):
    @step
    def start(self):
        self.base = 100
        self.xs = "ab"
        self.next(self.x_step, foreach="xs")

    @step
    def x_step(self):
        self.x = self.input
        self.ys = [1, 2]
        self.next(self.y_step, foreach="ys")

    @step
    def y_step(self):
        self.y = self.input
        self.zs = (True, False)
        self.next(self.z_step, foreach="zs")

    @step
    def z_step(self):
        self.z = self.input
        self.combined = (self.x, self.y, self.z, self.base)
        self.depth = [(index, count, value) for index, count, value in self.foreach_stack()]
        self.next(self.join_z)

    @step
    def join_z(self, inputs):
        self.merge_artifacts(inputs, include=["x", "y", "base"])
        self.all = [each.combined for each in inputs]
        self.next(self.join_y)

    @step
    def join_y(self, inputs):
        self.merge_artifacts(inputs, exclude=["y", "all"])
        self.all = [one for each in inputs for one in each.all]
        self.next(self.join_x)

    @step
    def join_x(self, inputs):
        self.all = [one for each in inputs for one in each.all]
        self.bases = {each.base for each in inputs}
        self.next(self.end)

    @step
    def end(self):
        self.count = len(self.all)


if __name__ == "__main__":
    NestedThreeFlow()
