"""`--with`: a decorator for each step that lacks it."""

# top: --with retry:times=1,minutes_between_retries=0

from metaflow import FlowSpec, current, retry, step


class WithOptionFlow(FlowSpec):
    @step
    def start(self):
        self.attempt = current.retry_count
        if self.attempt == 0:
            raise ValueError("once")
        self.next(self.middle)

    @retry(times=2, minutes_between_retries=0)
    @step
    def middle(self):
        self.attempt = current.retry_count
        if self.attempt < 2:
            raise ValueError("twice")
        self.next(self.end)

    @step
    def end(self):
        self.attempt = current.retry_count


if __name__ == "__main__":
    WithOptionFlow()
