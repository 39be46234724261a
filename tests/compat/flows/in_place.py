"""Artifacts that are changed in place, shared, deleted and set again."""

from metaflow import FlowSpec, step


class InPlaceFlow(FlowSpec):
    @step
    def start(self):
        self.items = [1]
        self.table = {"a": [1]}
        self.alias = self.items
        self.nested = {"deep": {"list": []}}
        self.untouched = [0]
        self.gone = "soon"
        self.next(self.change)

    @step
    def change(self):
        self.items.append(2)
        self.table["a"].append(2)
        self.nested["deep"]["list"] += ["x"]
        inner = self.nested
        inner["new"] = 1
        self.alias_saw = list(self.alias)
        self.gone = None
        self.next(self.left, self.right)

    @step
    def left(self):
        self.items.append("left")
        self.next(self.join)

    @step
    def right(self):
        self.items.append("right")
        self.next(self.join)

    @step
    def join(self, inputs):
        self.both = [inputs.left.items, inputs.right.items]
        inputs.left.items.append("in the join")
        self.items = inputs.left.items
        self.merge_artifacts(inputs, include=["table", "nested", "untouched"])
        self.table["b"] = 1
        self.next(self.end)

    @step
    def end(self):
        self.final = (self.items, self.table, self.nested, self.untouched)


if __name__ == "__main__":
    InPlaceFlow()
