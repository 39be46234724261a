"""A decorator that skips a step, and one that puts a function in its place."""

from metaflow import USER_SKIP_STEP, FlowSpec, step, user_step_decorator


@user_step_decorator
def skipped(step_name, flow, inputs, attributes):
    flow.skipped = step_name
    yield USER_SKIP_STEP


@user_step_decorator
def replaced(step_name, flow, inputs, attributes):
    def other(flow):
        flow.value = "of the other"
        return True

    yield other


class SkippingFlow(FlowSpec):
    @step
    def start(self):
        self.value = "of start"
        self.next(self.a)

    @skipped
    @step
    def a(self):
        self.value = "of a"
        self.next(self.b)

    @replaced
    @step
    def b(self):
        self.value = "of b"
        self.next(self.end)

    @step
    def end(self):
        self.final = self.value


if __name__ == "__main__":
    SkippingFlow()
