"""profile, parallel_map, parallel_imap_unordered, and events, schedules and places of a deployment in the text."""

from metaflow import FlowSpec, parallel_imap_unordered, parallel_map, profile, project, schedule, step, trigger_on_finish


@schedule(cron="0 6 * * *")
@project(name="tools")
@trigger_on_finish(flow="SomeOtherFlow")
class ToolsFlow(FlowSpec):
    @step
    def start(self):
        factor = 3
        self.mapped = parallel_map(lambda value: value * factor, range(5), max_parallel=2)
        self.unordered = sorted(parallel_imap_unordered(lambda value: value + factor, [1, 2, 3]))
        times = {}
        with profile("block", stats_dict=times):
            sum(range(1000))
        self.measured = [name for name, took in times.items() if took >= 0]
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    ToolsFlow()
