"""The seed's block, as written, with what it leaves out: train."""

from flowbook import FlowSpec, step, resources, card
from training import evaluate, train_model


class TrainFlow(FlowSpec):
    """Train a model and evaluate it."""

    @step
    def start(self):
        self.learning_rate = 0.001
        self.epochs = 50
        self.next(self.train)

    @resources(gpu=1, memory=32000, cpu=8)
    @card(type="blank", refresh_interval=5)
    @step
    def train(self):
        # Your training code here
        self.model = train_model(
            lr=self.learning_rate, epochs=self.epochs
        )
        self.accuracy = evaluate(self.model)
        self.next(self.end)

    @step
    def end(self):
        print(f"Training complete. Accuracy: {self.accuracy}")


if __name__ == "__main__":
    TrainFlow()
