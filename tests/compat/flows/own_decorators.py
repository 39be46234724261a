"""Decorators of one's own: a generator, one with arguments, a class, one that skips, one that swallows."""

from metaflow import FlowSpec, UserStepDecorator, step, user_step_decorator


@user_step_decorator
def traced(step_name, flow, inputs=None, attributes=None):
    flow.trace = [*getattr(flow, "trace", []), f"before {step_name}"]
    yield
    flow.trace = [*flow.trace, f"after {step_name}"]


@user_step_decorator
def labelled(step_name, flow, inputs, attributes):
    flow.label = attributes["label"]
    yield


@user_step_decorator
def forgiving(step_name, flow, inputs, attributes):
    try:
        yield
    except ValueError as error:
        flow.forgiven = str(error)


class Counting(UserStepDecorator):
    def init(self, *args, **kwargs):
        self.by = kwargs.get("by", 1)

    def pre_step(self, step_name, flow, inputs=None):
        flow.count = getattr(flow, "count", 0) + self.by
        return None

    def post_step(self, step_name, flow, exception=None):
        flow.counted = step_name
        return exception


class OwnDecoratorsFlow(FlowSpec):
    @traced
    @labelled(label="first")
    @step
    def start(self):
        self.trace = [*self.trace, "in start"]
        self.next(self.middle)

    @Counting(by=5)
    @traced
    @step
    def middle(self):
        self.trace = [*self.trace, "in middle"]
        self.next(self.left, self.right)

    @Counting(by=1)
    @step
    def left(self):
        self.next(self.join)

    @step
    def right(self):
        self.next(self.join)

    @traced
    @step
    def join(self, inputs):
        self.counts = sorted(branch.count for branch in inputs)
        self.next(self.end)

    @forgiving
    @step
    def end(self):
        self.reached = True
        raise ValueError("forgiven")


if __name__ == "__main__":
    OwnDecoratorsFlow()
