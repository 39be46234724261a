"""A switch whose branches are several steps long, meet again, and end in a second switch."""

from metaflow import FlowSpec, step


class TwoStepSwitchFlow(FlowSpec):
    @step
    def start(self):
        self.trail = ["start"]
        self.size = 3
        self.kind = "big" if self.size > 2 else "small"
        self.next({"big": self.shrink, "small": self.keep}, condition="kind")

    @step
    def shrink(self):
        self.trail.append("shrink")
        self.size -= 1
        self.next(self.check)

    @step
    def check(self):
        self.trail.append("check")
        self.again = 1 if self.size < 3 else 2
        self.next({1: self.keep, 2: self.give_up}, condition="again")

    @step
    def keep(self):
        self.trail.append("keep")
        self.next(self.end)

    @step
    def give_up(self):
        self.trail.append("give up")
        self.next(self.end)

    @step
    def end(self):
        self.trail.append("end")


if __name__ == "__main__":
    TwoStepSwitchFlow()
