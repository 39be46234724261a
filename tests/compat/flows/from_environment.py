"""Parameters that the environment gives."""

# env: METAFLOW_RUN_WHOLE=41
# args: --text given

from metaflow import FlowSpec, Parameter, step


class FromEnvironmentFlow(FlowSpec):
    whole = Parameter("whole", default=1)
    text = Parameter("text", required=True)

    @step
    def start(self):
        self.seen = (self.whole, self.text)
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    FromEnvironmentFlow()
