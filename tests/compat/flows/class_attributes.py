"""Attributes of the class, methods that help, properties, functions and classes of the file."""

from metaflow import FlowSpec, step

FACTOR = 3


def tripled(value):
    return value * FACTOR


class Counter:
    def __init__(self):
        self.n = 0

    def up(self):
        self.n += 1
        return self.n


class ClassAttributesFlow(FlowSpec):
    """A flow whose class has more than steps."""

    limit = 10
    words = ["a", "b"]  # noqa: RUF012
    table = {"k": 1}  # noqa: RUF012

    @step
    def start(self):
        self.value = 4
        self.tripled = tripled(self.value)
        self.counted = [Counter().up(), self.twice(5), self.static(2), self.of_class()]
        self.with_property = self.half
        self.from_class = (self.limit, self.words, self.table)
        self.next(self.end)

    @step
    def end(self):
        self.helped = self.summed(1, 2, more=3)
        self.with_property = self.half
        self.still = (self.limit, self.words)

    def twice(self, value):
        return 2 * value

    def summed(self, *values, more=0):
        return sum(values) + more + self.value

    @staticmethod
    def static(value):
        return value + 1

    @classmethod
    def of_class(cls):
        return cls.__name__

    @property
    def half(self):
        return self.value / 2


if __name__ == "__main__":
    ClassAttributesFlow()
