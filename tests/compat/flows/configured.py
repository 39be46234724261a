"""Configs: from a file, from a default value, with a parser, in decorators and in steps."""

from metaflow import Config, FlowSpec, Parameter, config_expr, environment, resources, retry, step


def words(text):
    return {"words": text.split()}


class ConfiguredFlow(FlowSpec):
    cfg = Config("cfg", default="data/settings.json")
    given = Config("given", default_value={"a": {"b": 1}, "l": [1, 2]})
    parsed = Config("parsed", default_value="x y z", parser=words)
    label = Parameter("label", default=cfg["name"])

    @retry(times=cfg.train.retries, minutes_between_retries=0)
    @resources(cpu=1, gpu=cfg.gpu)
    @environment(vars={"NAME_OF_IT": config_expr("cfg.name"), "SUM": config_expr("str(given.a.b + 1)")})
    @step
    def start(self):
        import os

        self.seen = (os.environ["NAME_OF_IT"], os.environ["SUM"])
        self.rates = list(self.cfg.train.rates)
        self.by_key = self.cfg["train"]["retries"]
        self.missing = self.cfg.get("absent", "none")
        self.keys = sorted(self.given.keys())
        self.as_dict = self.given.to_dict()
        self.split = list(self.parsed.words)
        self.named = self.label
        self.next(self.each, foreach="rates")

    @step
    def each(self):
        self.rate = self.input
        self.next(self.join)

    @step
    def join(self, inputs):
        self.rates = [each.rate for each in inputs]
        self.next(self.end)

    @step
    def end(self):
        try:
            self.cfg.gpu = 3
        except (AttributeError, TypeError) as error:
            self.read_only = isinstance(error, Exception)


if __name__ == "__main__":
    ConfiguredFlow()
