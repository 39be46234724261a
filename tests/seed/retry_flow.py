"""The seed's block, as written, with what it leaves out: retry."""

from flowbook import FlowSpec, step, resources, retry


class RetryFlow(FlowSpec):
    @step
    def start(self):
        self.next(self.train)

    @retry(times=3, minutes_between_retries=5)
    @resources(gpu=1)
    @step
    def train(self):
        # If this step fails, it retries up to 3 times
        # with 5 minutes between each attempt
        ...
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    RetryFlow()
