"""A foreach over an array, over the rows of a table, and over objects; arrays that are merged in a join."""

import numpy as np
import pandas as pd
from metaflow import FlowSpec, step
from shapes_helper import Model


class ForeachArraysFlow(FlowSpec):
    @step
    def start(self):
        self.array = np.array([1.5, 2.5, 3.5])
        self.same = np.zeros(3)
        self.next(self.number, foreach="array")

    @step
    def number(self):
        self.mine = float(self.input)
        self.kind = type(self.input).__name__
        self.total = np.full(2, 7)
        self.next(self.join_numbers)

    @step
    def join_numbers(self, inputs):
        self.got = [(each.mine, each.kind) for each in inputs]
        self.merge_artifacts(inputs, exclude=["mine", "kind"])
        self.next(self.rows)

    @step
    def rows(self):
        frame = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})
        self.records = frame.to_dict("records")
        self.next(self.row, foreach="records")

    @step
    def row(self):
        self.seen = (self.index, self.input["a"], self.input["b"])
        self.next(self.join_rows)

    @step
    def join_rows(self, inputs):
        self.seen = [each.seen for each in inputs]
        self.total = inputs[0].total
        self.next(self.models)

    @step
    def models(self):
        self.candidates = [Model([n]) for n in range(2)]
        self.next(self.model, foreach="candidates")

    @step
    def model(self):
        self.chosen = self.input
        self.score = self.input.score()
        self.next(self.join_models)

    @step
    def join_models(self, inputs):
        self.best = max(inputs, key=lambda each: each.score).chosen
        self.scores = np.array([each.score for each in inputs])
        self.next(self.end)

    @step
    def end(self):
        self.final = (self.best.score(), self.scores.tolist(), float(self.scores.mean()))


if __name__ == "__main__":
    ForeachArraysFlow()
