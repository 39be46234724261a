"""In each item of a foreach a step goes on to itself, as often as the item says."""

from metaflow import FlowSpec, step


class RecursiveForeachFlow(FlowSpec):
    @step
    def start(self):
        self.limits = [1, 3]
        self.next(self.begin, foreach="limits")

    @step
    def begin(self):
        self.limit, self.rounds = self.input, 0
        self.next(self.turn)

    @step
    def turn(self):
        self.rounds += 1
        self.ready = self.rounds >= self.limit
        self.next({True: self.turned, False: self.turn}, condition="ready")

    @step
    def turned(self):
        self.told = (self.index, self.limit, self.rounds)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.told = [each.told for each in inputs]
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    RecursiveForeachFlow()
