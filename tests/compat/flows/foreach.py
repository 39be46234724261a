"""A foreach: what each task knows, and the order in which the join gets them."""

from metaflow import FlowSpec, step


class ForeachFlow(FlowSpec):
    @step
    def start(self):
        self.letters = list("badc")
        self.common = 3
        self.outside = (self.index, self.input, self.foreach_stack())
        self.next(self.each, foreach="letters")

    @step
    def each(self):
        self.letter = self.input
        self.place = self.index
        self.stack = [tuple(frame) for frame in self.foreach_stack()]
        self.made = self.letter * self.common
        self.next(self.after)

    @step
    def after(self):
        self.still = (self.input, self.index)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.made = [each.made for each in inputs]
        self.places = [each.place for each in inputs]
        self.third = inputs[2].letter
        self.count = len(list(inputs))
        self.cut = [each.letter for each in inputs[1:3]]
        self.letters = inputs[0].letters
        self.next(self.end)

    @step
    def end(self):
        self.outside = (self.index, self.input)


if __name__ == "__main__":
    ForeachFlow()
