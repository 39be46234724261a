"""Parameters whose defaults are functions of the context, and `current.parameter_names`."""

from metaflow import FlowSpec, JSONType, Parameter, current, project, step


def text_default(context):
    return f"{context.parameter_name} {context.flow_name} {context.user_name}"


def json_default(context):
    return '{"' + context.parameter_name + '": [1]}'


@project(name="names")
class ParameterNamesFlow(FlowSpec):
    text = Parameter("text", default=text_default)
    table = Parameter("table", type=JSONType, default=json_default)
    yes = Parameter("yes", type=bool, default=lambda _: True)
    constant = "c"

    @step
    def start(self):
        self.names = sorted(current.parameter_names)
        self.seen = (self.text, self.table, self.yes)
        self.next(self.end)

    @step
    def end(self):
        self.names_at_end = sorted(current.parameter_names)


if __name__ == "__main__":
    ParameterNamesFlow()
