"""Metaflow's exceptions, raised, derived from, and caught."""

from metaflow import Flow, FlowSpec, Run, step
from metaflow.exception import MetaflowException, MetaflowNotFound


class OwnError(MetaflowException):
    headline = "My own"

    def __init__(self, what):
        super().__init__(f"own: {what}")


class RaisedFlow(FlowSpec):
    @step
    def start(self):
        self.caught = []
        for error in (MetaflowException("plain"), OwnError("thing")):
            try:
                raise error
            except MetaflowException as caught:
                self.caught.append(str(caught))
        for ask in (lambda: Flow("NoSuchFlow"), lambda: Run("RaisedFlow/999999")):
            try:
                ask()
            except MetaflowNotFound as error:
                self.caught.append(isinstance(error, MetaflowException))
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    RaisedFlow()
