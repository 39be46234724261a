"""@resources, @environment and @secrets in the flow's own text, and which process has which variables."""

import os

from metaflow import FlowSpec, environment, resources, secrets, step


class SurroundingsFlow(FlowSpec):
    @environment(vars={"FLAVOUR": "mint", "COUNT": "3"})
    @resources(cpu=1, memory=500, disk=1000)
    @step
    def start(self):
        self.flavour, self.count = os.environ["FLAVOUR"], os.environ["COUNT"]
        self.next(self.secret)

    @secrets(sources=[{"type": "inline", "id": "test", "options": {"env_vars": {"PASSWORD_OF_TEST": "open sesame"}}}])
    @step
    def secret(self):
        self.known = len(os.environ["PASSWORD_OF_TEST"])
        self.flavour_here = os.environ.get("FLAVOUR")
        self.next(self.end)

    @step
    def end(self):
        self.known_here = os.environ.get("PASSWORD_OF_TEST")


if __name__ == "__main__":
    SurroundingsFlow()
