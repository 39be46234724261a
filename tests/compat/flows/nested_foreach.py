"""A foreach inside a foreach."""

from metaflow import FlowSpec, step


class NestedForeachFlow(FlowSpec):
    @step
    def start(self):
        self.rows = ["a", "b"]
        self.next(self.row, foreach="rows")

    @step
    def row(self):
        self.row_name = self.input
        self.columns = [1, 2, 3]
        self.next(self.cell, foreach="columns")

    @step
    def cell(self):
        self.cell_name = f"{self.row_name}{self.input}"
        self.stack = [tuple(frame) for frame in self.foreach_stack()]
        self.next(self.join_cells)

    @step
    def join_cells(self, inputs):
        self.cells = [each.cell_name for each in inputs]
        self.stack = [tuple(frame) for frame in self.foreach_stack()]
        self.here = (self.index, self.input)
        self.row_name = inputs[0].row_name
        self.next(self.join_rows)

    @step
    def join_rows(self, inputs):
        self.table = {each.row_name: each.cells for each in inputs}
        self.here = (self.index, self.input)
        self.next(self.end)

    @step
    def end(self):
        self.last = self.table["b"][-1]


if __name__ == "__main__":
    NestedForeachFlow()
