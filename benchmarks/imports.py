"""What an import costs: CPU seconds above a bare interpreter's, `%load_ext`, and which heavy modules come with it."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable

from benchmarks.book import Kernel, clean_environment, run_peer, run_process, scratch
from benchmarks.environments import version_of
from benchmarks.measure import Contest, Contestant, Fact, Sample, Section, Settings, amount

UNWANTED = ("boto3", "kubernetes", "numpy", "pandas")
LEAST_S = 1e-4  # an import that costs less than the interpreter's own start varies


def run(settings: Settings) -> Section:
    with scratch() as folder:

        def own(code: str) -> float:
            return run_process([sys.executable, "-c", code], clean_environment(folder), folder)[1]

        contestants = [Contestant("flowbook", "", lambda: above(own, "import flowbook"))]
        if settings.peers:
            name = f"metaflow {version_of('metaflow', 'metaflow')}"
            contestants.append(
                Contestant(name, "", lambda: above(lambda code: run_peer("metaflow", ["-c", code], folder)[1], "import metaflow"))
            )
        contest = Contest("import: CPU milliseconds above those of a bare interpreter", "ms", False, contestants).hold(settings.rounds)
        loaded = subprocess.run(
            [sys.executable, "-c", f"import sys, flowbook; print([m for m in {UNWANTED} if m in sys.modules])"],
            env=clean_environment(folder),
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        extension, in_kernel = load_extension(settings)
    heavy = ", ".join(UNWANTED)
    facts = [
        Fact("%load_ext flowbook in a new kernel, wall, median", f"{amount(1000 * statistics.median(extension))} ms"),
        Fact(f"of {heavy}: loaded by `import flowbook`", loaded),
        Fact(f"of {heavy}: loaded by `%load_ext flowbook`", str(in_kernel)),
    ]
    return Section("imports", [contest], facts)


def above(cpu_s: Callable[[str], float], code: str) -> Sample:
    """CPU milliseconds of `code` above those of nothing, each the median of three interpreters."""
    bare = statistics.median(cpu_s("pass") for _ in range(3))
    whole = statistics.median(cpu_s(code) for _ in range(3))
    return Sample(1000 * max(LEAST_S, whole - bare))


def load_extension(settings: Settings) -> tuple[list[float], list[str]]:
    """Seconds of `%load_ext flowbook` in a new kernel each time, and the heavy modules that it brought."""
    times, brought = [], set()
    for _ in range(min(3, settings.rounds)):
        with scratch() as folder, Kernel(folder / "kernel") as kernel:
            before = set(kernel.value("list(__import__('sys').modules)"))
            times.append(kernel.seconds("%load_ext flowbook"))
            after = set(kernel.value("list(__import__('sys').modules)"))
            brought |= {name for name in UNWANTED if name in after - before}
    return times, sorted(brought)
