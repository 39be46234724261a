"""A flow of one step."""

from metaflow import FlowSpec, Parameter, step


class OneStepFlow(FlowSpec):
    n = Parameter("n", default=4)

    @step
    def only(self):
        self.result = self.n**2


if __name__ == "__main__":
    OneStepFlow()
