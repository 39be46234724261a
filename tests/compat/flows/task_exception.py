"""The error of a failed task, read through the client while its run is resumed."""

# exit: 1
# then: resume

from metaflow import Flow, FlowSpec, current, namespace, step


class OwnError(Exception):
    pass


class TaskExceptionFlow(FlowSpec):
    @step
    def start(self):
        self.next(self.fails)

    @step
    def fails(self):
        if current.origin_run_id is None:
            raise OwnError("for the client")
        namespace(None)
        task = Flow("TaskExceptionFlow")[current.origin_run_id]["fails"].task
        self.told = (task.successful, task.exception.exception, task.exception.type.split(".")[-1])
        self.traced = "for the client" in task.exception.stacktrace
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    TaskExceptionFlow()
