"""A step that goes on to itself until a condition holds."""

from metaflow import FlowSpec, step


class RecursiveFlow(FlowSpec):
    @step
    def start(self):
        self.count, self.trail = 0, []
        self.next(self.loop)

    @step
    def loop(self):
        self.count += 1
        self.trail = [*self.trail, self.count]
        self.more = "yes" if self.count < 4 else "no"
        self.next({"yes": self.loop, "no": self.end}, condition="more")

    @step
    def end(self):
        self.final = (self.count, self.trail)


if __name__ == "__main__":
    RecursiveFlow()
