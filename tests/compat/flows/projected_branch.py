"""@project with `--branch`: a branch that the command line names."""

# top: --branch trial

from metaflow import FlowSpec, current, project, step


@project(name="fruit")
class ProjectedBranchFlow(FlowSpec):
    @step
    def start(self):
        self.told = (current.project_name, current.branch_name, current.project_flow_name)
        self.kind = (current.is_user_branch, current.is_production)
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    ProjectedBranchFlow()
