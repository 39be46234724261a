"""@catch: the flow goes on, and later steps can look at the error."""

from metaflow import FlowSpec, catch, retry, step


class CaughtFlow(FlowSpec):
    @step
    def start(self):
        self.numbers = [2, 0]
        self.next(self.divide, foreach="numbers")

    @catch(var="failed", print_exception=False)
    @retry(times=1, minutes_between_retries=0)
    @step
    def divide(self):
        self.before = self.input
        self.result = 10 / self.input
        self.next(self.join)

    @step
    def join(self, inputs):
        self.which = [bool(each.failed) for each in inputs]
        self.results = [None if each.failed else each.result for each in inputs]
        self.has_result = [hasattr(each, "result") for each in inputs]
        self.told = "ZeroDivisionError" in str(inputs[1].failed.type)
        self.next(self.unnamed)

    @catch(print_exception=False)
    @step
    def unnamed(self):
        self.made = 1
        raise RuntimeError("nobody keeps this")
        self.next(self.end)

    @step
    def end(self):
        self.made_here = hasattr(self, "made")


if __name__ == "__main__":
    CaughtFlow()
