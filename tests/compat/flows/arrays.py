"""Arrays and tables as artifacts."""

import numpy as np
import pandas as pd
from metaflow import FlowSpec, step


class ArraysFlow(FlowSpec):
    @step
    def start(self):
        self.vector = np.arange(6, dtype="float32").reshape(2, 3)
        self.whole = np.int64(5)
        self.mask = np.array([True, False])
        self.names = np.array(["a", "bb"])
        self.table = pd.DataFrame({"n": [1, 2, 3], "s": ["x", "y", "z"], "f": [0.5, None, 2.0]})
        self.column = self.table["n"]
        self.when = pd.Timestamp("2026-01-02 03:04", tz="UTC")
        self.next(self.change)

    @step
    def change(self):
        self.vector[0, 0] = 100
        self.table["m"] = self.table["n"] * 2
        self.views = {"row": self.vector[1], "transposed": self.vector.T}
        self.rows = [{"n": int(n)} for n in self.table["n"]]
        self.next(self.each, foreach="rows")

    @step
    def each(self):
        self.part = self.vector * self.input["n"]
        self.next(self.join)

    @step
    def join(self, inputs):
        self.stacked = np.stack([each.part for each in inputs])
        self.merge_artifacts(inputs, include=["table", "vector"])
        self.next(self.end)

    @step
    def end(self):
        self.total = float(self.stacked.sum())
        self.size = self.table.shape


if __name__ == "__main__":
    ArraysFlow()
