"""A split in each item of a foreach."""

from metaflow import FlowSpec, step


class ForeachBranchFlow(FlowSpec):
    @step
    def start(self):
        self.items = [1, 2]
        self.next(self.split, foreach="items")

    @step
    def split(self):
        self.item = self.input
        self.next(self.double, self.square)

    @step
    def double(self):
        self.result = self.item * 2
        self.seen = self.input
        self.next(self.join)

    @step
    def square(self):
        self.result = self.item**2
        self.seen = self.input
        self.next(self.join)

    @step
    def join(self, inputs):
        self.results = (inputs.double.result, inputs.square.result)
        self.item = inputs.double.item
        self.seen = [inputs.double.seen, inputs.square.seen]
        self.next(self.collect)

    @step
    def collect(self, inputs):
        self.all = {each.item: each.results for each in inputs}
        self.next(self.end)

    @step
    def end(self):
        print(self.all)


if __name__ == "__main__":
    ForeachBranchFlow()
