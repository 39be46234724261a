"""Code beside the flow: modules that import metaflow themselves."""

import shapes_helper
from metaflow import FlowSpec, step


class HelperModulesFlow(FlowSpec):
    @step
    def start(self):
        self.model = shapes_helper.Model([1.5, 2.5], name="m")
        self.models = [self.model, shapes_helper.Model([1])]
        self.next(self.each, foreach="models")

    @step
    def each(self):
        self.score = self.input.score()
        self.input.weights.append(1)
        self.mine = self.input
        self.next(self.join)

    @step
    def join(self, inputs):
        from shapes_helper import Model

        self.best = max((each.mine for each in inputs), key=lambda model: len(model.weights)).name
        self.scores = [each.score for each in inputs]
        self.is_model = isinstance(inputs[0].mine, Model)
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    HelperModulesFlow()
