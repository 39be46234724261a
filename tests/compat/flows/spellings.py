"""The same said in other words: aliases, annotations, wrapped methods, odd layouts, deleted attributes."""

import functools

import metaflow as mf
from metaflow import FlowSpec as Flow


def counted(function):
    """A decorator that knows nothing of flows."""

    @functools.wraps(function)
    def wrapper(self, *arguments):
        self.calls = [*getattr(self, "calls", []), function.__name__]
        return function(self, *arguments)

    return wrapper


class SpellingsFlow(Flow):
    """A flow."""

    @mf.step
    def start(self) -> None:
        """Has a docstring."""
        self.a, self.b = 1, 2
        self.c: int = 3
        self.d = self.e = [4]
        self.f = 0
        self.f += 5
        (self.g, *self.rest) = (6, 7, 8)
        for self.last in range(3):
            pass
        with open(__file__) as self.handle:
            self.first = self.handle.readline()[:3]
        del self.handle
        self.next(
            self.middle,  # a comment
        )

    @counted
    @mf.step
    def middle(self):
        self.sum = self.a + self.b + self.c + self.f + self.g
        self.items = ["p", "q"]
        self.next(self.each, foreach="items")

    @mf.step
    @counted
    def each(self):
        self.item = (lambda: self.input)()
        self.inner = [self.input * n for n in range(2)]

        def helper():
            self.from_helper = self.item + "!"

        helper()
        self.next(self.join)

    @mf.retry(times=0)
    @counted
    @mf.step
    def join(self, ins):
        self.items = [each.from_helper for each in ins]
        self.calls = ins[0].calls
        self.next(self.end)

    @mf.step
    def end(self):
        try:
            self.result = sum(len(item) for item in self.items)
        finally:
            self.finished = True


if __name__ == "__main__":
    SpellingsFlow()
