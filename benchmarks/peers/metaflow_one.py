"""metaflow: one step."""

from metaflow import FlowSpec, Parameter, step


class OneFlow(FlowSpec):
    turn = Parameter("turn", default=0)

    @step(start=True, end=True)
    def one(self) -> None:
        self.value = self.turn + 1


if __name__ == "__main__":
    OneFlow()
