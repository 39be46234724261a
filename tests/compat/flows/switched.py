"""A switch: one of several steps, chosen by an artifact, alone and in each item of a foreach."""

from metaflow import FlowSpec, Parameter, step


class SwitchedFlow(FlowSpec):
    mode = Parameter("mode", default="slow")

    @step
    def start(self):
        self.way = self.mode
        self.next({"fast": self.fast, "slow": self.slow, "other": self.other}, condition="way")

    @step
    def fast(self):
        self.took = "fast"
        self.next(self.meet)

    @step
    def slow(self):
        self.took = "slow"
        self.extra = [1]
        self.next(self.meet)

    @step
    def other(self):
        self.took = "other"
        self.next(self.meet)

    @step
    def meet(self):
        self.met = (self.took, hasattr(self, "extra"))
        self.numbers = [1, 2, 3]
        self.next(self.look, foreach="numbers")

    @step
    def look(self):
        self.number = self.input
        self.parity = "odd" if self.input % 2 else "even"
        self.next({"odd": self.odd, "even": self.even}, condition="parity")

    @step
    def odd(self):
        self.name_of_it = f"{self.number} is odd"
        self.next(self.told)

    @step
    def even(self):
        self.name_of_it = f"{self.number} is even"
        self.next(self.told)

    @step
    def told(self):
        self.told_name = self.name_of_it.upper()
        self.next(self.join)

    @step
    def join(self, inputs):
        self.names = [each.told_name for each in inputs]
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    SwitchedFlow()
