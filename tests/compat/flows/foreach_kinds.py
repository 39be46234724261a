"""What can be iterated: tuples, ranges, strings, and items that are None or equal."""

from metaflow import FlowSpec, step


class ForeachKindsFlow(FlowSpec):
    @step
    def start(self):
        self.numbers = range(3)
        self.next(self.number, foreach="numbers")

    @step
    def number(self):
        self.mine = self.input
        self.next(self.join_numbers)

    @step
    def join_numbers(self, inputs):
        self.got = [each.mine for each in inputs]
        self.next(self.next_text)

    @step
    def next_text(self):
        self.text = "xyx"
        self.next(self.character, foreach="text")

    @step
    def character(self):
        self.mine = (self.index, self.input)
        self.next(self.join_text)

    @step
    def join_text(self, inputs):
        self.got = [each.mine for each in inputs]
        self.next(self.next_mixed)

    @step
    def next_mixed(self):
        self.mixed = (None, [1], {"a": 2}, None)
        self.next(self.item, foreach="mixed")

    @step
    def item(self):
        self.mine = (self.index, self.input)
        self.next(self.join_items)

    @step
    def join_items(self, inputs):
        self.got = [each.mine for each in inputs]
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    ForeachKindsFlow()
