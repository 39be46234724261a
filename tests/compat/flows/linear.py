"""Steps one after the other; artifacts of all plain types."""

import datetime
import decimal

from metaflow import FlowSpec, step


class LinearFlow(FlowSpec):
    @step
    def start(self):
        self.whole, self.real, self.text, self.nothing = 7, 0.5, "naïve ☃", None
        self.yes, self.raw, self.z = True, b"\x00\xff", 1 + 2j
        self.items, self.pair, self.table, self.names = [1, [2]], (1, "a"), {"a": {"b": 1}, 3: None}, {"x", "y"}
        self.day, self.exact = datetime.date(2026, 3, 1), decimal.Decimal("1.10")
        print("start has", self.whole)
        self.next(self.middle)

    @step
    def middle(self):
        self.whole += 1
        self.squares = {n: n * n for n in range(4)}
        print("middle has", self.whole)
        self.next(self.end)

    @step
    def end(self):
        self.total = self.whole + sum(self.squares.values())
        print("end has", self.total, self.text)


if __name__ == "__main__":
    LinearFlow()
