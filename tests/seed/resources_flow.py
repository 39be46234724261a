"""The seed's block, as written, with what it leaves out: resources."""

from flowbook import FlowSpec, step, resources


class ResourcesFlow(FlowSpec):
    @step
    def start(self):
        self.next(self.standard, self.top, self.cpu_only, self.scratch)

    # Standard GPU (L4/L40S) — most training workloads
    @resources(gpu=1, memory=64000, cpu=16)
    @step
    def standard(self):
        self.next(self.join)

    # Top-tier GPU (A100/H100) — large-scale training
    @resources(gpu=4, memory=256000, cpu=64)
    @step
    def top(self):
        self.next(self.join)

    # CPU-only — data processing, preprocessing
    @resources(memory=32000, cpu=16, disk=500000)
    @step
    def cpu_only(self):
        self.next(self.join)

    # With large scratch disk for simulation data
    @resources(gpu=1, memory=64000, cpu=16, disk=1000000)
    @step
    def scratch(self):
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    ResourcesFlow()
