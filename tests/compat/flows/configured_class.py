"""Configs in the decorators of the class, and in parameters."""

from metaflow import Config, FlowSpec, Parameter, config_expr, current, project, schedule, step


@schedule(cron=config_expr("cfg.cron"))
@project(name=config_expr("cfg.project"))
class ConfiguredClassFlow(FlowSpec):
    cfg = Config("cfg", default_value={"cron": "0 6 * * *", "project": "from_config", "n": 3, "deep": {"list": [1, {"x": 2}]}})
    n = Parameter("n", default=config_expr("cfg.n"), type=int)

    @step
    def start(self):
        self.project_is = current.project_name
        self.n_is = self.n
        self.deep = self.cfg.deep.list[1]["x"]
        self.has = ("deep" in self.cfg, "absent" in self.cfg, len(self.cfg))
        self.copied = dict(self.cfg.deep)["list"][0]
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    ConfiguredClassFlow()
