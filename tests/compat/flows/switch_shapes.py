"""A split, a foreach and another switch behind a switch; a switch inside a branch of a split."""

from metaflow import FlowSpec, step


class SwitchShapesFlow(FlowSpec):
    @step
    def start(self):
        self.kind = "wide"
        self.next({"wide": self.fan, "narrow": self.lone}, condition="kind")

    @step
    def fan(self):
        self.numbers = [3, 4]
        self.next(self.each, foreach="numbers")

    @step
    def each(self):
        self.n = self.input
        self.next(self.join_fan)

    @step
    def join_fan(self, inputs):
        self.total = sum(each.n for each in inputs)
        self.next(self.middle)

    @step
    def lone(self):
        self.total = -1
        self.next(self.middle)

    @step
    def middle(self):
        self.next(self.left, self.right)

    @step
    def left(self):
        self.side = "odd" if self.total % 2 else "even"
        self.next({"odd": self.odd, "even": self.even}, condition="side")

    @step
    def odd(self):
        self.result = f"{self.total} odd"
        self.next(self.left_end)

    @step
    def even(self):
        self.result = f"{self.total} even"
        self.next(self.left_end)

    @step
    def left_end(self):
        self.next(self.join)

    @step
    def right(self):
        self.result = "right"
        self.next(self.join)

    @step
    def join(self, inputs):
        self.results = (inputs.left_end.result, inputs.right.result)
        self.total = inputs.right.total
        self.next(self.last)

    @step
    def last(self):
        self.size = "large" if self.total > 5 else "small"
        self.next({"large": self.split, "small": self.end}, condition="size")

    @step
    def split(self):
        self.next(self.a, self.b)

    @step
    def a(self):
        self.letter = "a"
        self.next(self.join_split)

    @step
    def b(self):
        self.letter = "b"
        self.next(self.join_split)

    @step
    def join_split(self, inputs):
        self.letters = sorted(branch.letter for branch in inputs)
        self.merge_artifacts(inputs, exclude=["letter"])
        self.next(self.end)

    @step
    def end(self):
        self.final = (self.results, self.total, self.letters)


if __name__ == "__main__":
    SwitchShapesFlow()
