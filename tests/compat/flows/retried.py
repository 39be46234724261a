"""Retries: the last attempt counts, and knows which one it is."""

from metaflow import FlowSpec, current, retry, step


class RetriedFlow(FlowSpec):
    @retry(times=2, minutes_between_retries=0)
    @step
    def start(self):
        self.attempt = current.retry_count
        setattr(self, f"made_by_{self.attempt}", True)
        if current.retry_count < 2:
            raise ValueError(f"attempt {current.retry_count} fails")
        self.items = [0, 1]
        self.next(self.each, foreach="items")

    @retry(times=1, minutes_between_retries=0)
    @step
    def each(self):
        self.mine = (self.input, current.retry_count)
        if self.input == 1 and current.retry_count == 0:
            raise ValueError("the second item fails once")
        self.next(self.join)

    @step
    def join(self, inputs):
        self.got = [each.mine for each in inputs]
        self.next(self.end)

    @retry(times=0)
    @step
    def end(self):
        self.last = current.retry_count


if __name__ == "__main__":
    RetriedFlow()
