"""A flow that takes steps and parameters from a base in another file."""

from metaflow import step
from shapes_helper import Base, Model


class Mixin:
    def named(self):
        return f"{self.unit}:{self.scale}"


class DerivedFlow(Mixin, Base):
    unit = "cm"

    @step
    def work(self):
        self.trail.append("own work")
        self.model = Model([1, 2, self.scale])
        self.size = self.scaled(21)
        self.named_as = self.named()
        self.next(self.extra)

    @step
    def extra(self):
        self.score = self.model.score()
        self.same_class = isinstance(self.model, Model)
        self.next(self.end)


if __name__ == "__main__":
    DerivedFlow()
