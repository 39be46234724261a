"""Parameters of all types, given, by default, and by a function when the run starts."""

# args: --whole 12 --real 2.5 --text "a b" --flag True --name-differs x --listed p,q --json '{"a":[1,null]}'

from metaflow import FlowSpec, JSONType, Parameter, step


def made(context):
    return f"for {context.flow_name}, {context.parameter_name}"


class ParametersFlow(FlowSpec):
    whole = Parameter("whole", default=3, help="a whole number")
    real = Parameter("real", default=0.5)
    text = Parameter("text", type=str, default="t")
    flag = Parameter("flag", default=False, type=bool)
    other = Parameter("name-differs", default="d")
    listed = Parameter("listed", separator=",", default="a,b")
    unlisted = Parameter("unlisted", separator="|", default="u|v")
    json = Parameter("json", type=JSONType, default='{"b": 1}')
    json_default = Parameter("json-default", type=JSONType, default={"c": [1, 2]})
    left_out = Parameter("left-out", type=int)
    needed = Parameter("needed", required=False, default="n")
    computed = Parameter("computed", type=str, default=made)

    @step
    def start(self):
        self.seen = [self.whole, self.real, self.text, self.flag, self.other, list(self.listed), list(self.unlisted), self.left_out]
        self.seen += [self.json, self.json_default, self.needed, self.computed]
        try:
            self.whole = 5
        except AttributeError:
            self.read_only = True
        self.next(self.left, self.right)

    @step
    def left(self):
        self.next(self.join)

    @step
    def right(self):
        self.next(self.join)

    @step
    def join(self, inputs):
        self.in_join = (self.whole, inputs.left.whole)
        self.next(self.end)

    @step
    def end(self):
        self.at_end = (self.real, self.json["a"])


if __name__ == "__main__":
    ParametersFlow()
