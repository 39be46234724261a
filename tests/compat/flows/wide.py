"""More items than run at once."""

# args: --max-workers 2

from metaflow import FlowSpec, step


class WideFlow(FlowSpec):
    @step
    def start(self):
        self.numbers = list(range(12))
        self.next(self.each, foreach="numbers")

    @step
    def each(self):
        self.square = self.input**2
        print("square", self.square)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.squares = [each.square for each in inputs]
        self.next(self.end)

    @step
    def end(self):
        self.total = sum(self.squares)


if __name__ == "__main__":
    WideFlow()
