"""The seed's block, as written, with what it leaves out: foreach."""

from flowbook import FlowSpec, step, resources
from training import evaluate, train_model


class ForeachFlow(FlowSpec):
    @step
    def start(self):
        self.learning_rates = [0.001, 0.01, 0.1]
        self.next(self.train, foreach="learning_rates")

    @resources(gpu=1, memory=32000)
    @step
    def train(self):
        self.lr = self.input  # 0.001, 0.01, or 0.1
        self.model = train_model(lr=self.lr)
        self.score = evaluate(self.model)
        self.next(self.pick_best)

    @step
    def pick_best(self, inputs):
        self.best = max(inputs, key=lambda x: x.score)
        print(f"Best LR: {self.best.lr}, Score: {self.best.score}")
        self.next(self.end)

    @step
    def end(self):
        self.rate_of_best = self.best.lr
        self.model_of_best = self.best.model


if __name__ == "__main__":
    ForeachFlow()
