"""The seed's block, as written, with what it leaves out: checkpoint."""

from flowbook import FlowSpec, step, resources, retry, checkpoint, save_checkpoint
from training import train_one_epoch


class CheckpointFlow(FlowSpec):
    @step
    def start(self):
        self.epochs = 50
        self.next(self.train)

    @retry(times=3, minutes_between_retries=0.001)
    @checkpoint
    @resources(gpu=1)
    @step
    def train(self):
        # Checkpoint periodically saves your training state to S3.
        # On failure + retry, it resumes from the last checkpoint
        # instead of starting from scratch.
        for epoch in range(self.epochs):
            train_one_epoch()
            save_checkpoint()  # Metaflow persists this to S3
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    CheckpointFlow()
