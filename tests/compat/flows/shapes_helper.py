"""What flows beside it import: a base class of flows, and a class whose instances are artifacts."""

from dataclasses import dataclass, field

from metaflow import FlowSpec, Parameter, step


@dataclass
class Model:
    weights: list = field(default_factory=list)
    name: str = "model"

    def score(self):
        return sum(self.weights)


class Base(FlowSpec):
    """A flow that others build on."""

    scale = Parameter("scale", type=int, default=2)
    unit = "mm"

    @step
    def start(self):
        self.trail = ["base start"]
        self.next(self.work)

    @step
    def work(self):
        self.trail.append("base work")
        self.next(self.end)

    @step
    def end(self):
        self.trail.append("base end")

    def scaled(self, value):
        return value * self.scale
