"""Bases that give steps, helpers and parameters; a step that is replaced and calls its base."""

from metaflow import FlowSpec, Parameter, current, retry, step


class Root(FlowSpec):
    rate = Parameter("rate", default=2.0)

    def prepared(self, value):
        return value * self.rate


class Middle(Root):
    @step
    def start(self):
        self.log = ["Middle.start"]
        self.next(self.work)

    @retry(times=1, minutes_between_retries=0)
    @step
    def work(self):
        self.body()
        self.next(self.end)

    def body(self):
        self.log = [*self.log, "Middle.body"]

    @step
    def end(self):
        self.log.append("end")


class DeepBaseFlow(Middle):
    extra = Parameter("extra", default="e")

    def body(self):
        super().body()
        self.log = [*self.log, f"own body {self.extra} {self.prepared(3)}"]
        if current.retry_count == 0:
            raise ValueError("once")


if __name__ == "__main__":
    DeepBaseFlow()
