"""Mutators of a flow and of a step, led by a config."""

import os

from metaflow import Config, FlowMutator, FlowSpec, Parameter, StepMutator, current, environment, retry, step


class Prepared(FlowMutator):
    def init(self, prefix="p"):
        self.prefix = prefix

    def pre_mutate(self, mutable_flow):
        mutable_flow.add_parameter("added", Parameter("added", default="by a mutator"))

    def mutate(self, mutable_flow):
        wanted = dict(mutable_flow.configs)["cfg"]["steps"]
        for name, each in mutable_flow.steps:
            if name in wanted:
                each.add_decorator(environment, deco_kwargs={"vars": {"PREFIX": f"{self.prefix}-{name}"}})


class Patient(StepMutator):
    def mutate(self, mutable_step):
        mutable_step.add_decorator(retry, deco_kwargs={"times": 1, "minutes_between_retries": 0})


@Prepared(prefix="own")
class MutatedFlow(FlowSpec):
    cfg = Config("cfg", default_value={"steps": ["start"]})

    @step
    def start(self):
        self.prefix = os.environ.get("PREFIX")
        self.seen = self.added
        self.next(self.fails)

    @Patient
    @step
    def fails(self):
        self.prefix = os.environ.get("PREFIX")
        if current.retry_count == 0:
            raise ValueError("once")
        self.attempt = current.retry_count
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    MutatedFlow()
