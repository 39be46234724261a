"""The programs of the cluster, built from our own small Go modules in ``go/`` and kept outside the checkout.

A module's programs stand in one folder named after what they are built from (go.mod, go.sum, the build's flags), which is
renamed into place when all of them are there: a half-built one is never taken for a whole one. One build of a module at a time;
a second one waits for the first and finds its work done.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

GO = Path(__file__).parent / "go"
OLDEST_GO = (1, 25)
TRIES = 3
DOWNLOAD_S = 600
BUILD_S = 5400
KEEP_S = 14 * 86400  # programs of an earlier state of a module are removed after this

KUBERNETES = "v1.34.4"
_VERSION = "k8s.io/component-base/version"
FLAGS = {  # of the linker, beside -s -w; without them the parts believe to be version 0.0.0 and refuse each other
    "kubernetes": f"-X {_VERSION}.gitVersion={KUBERNETES} -X {_VERSION}.gitMajor=1 -X {_VERSION}.gitMinor=34",
}
PROGRAMS = {
    "s3": ("versitygw",),
    "kubernetes": ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"),
    "karpenter": ("karpenter",),
    "kwok": ("kwok",),
    "argo": ("workflow-controller", "argoexec"),
}
RENAMED = {"karpenter": {"kwok": "karpenter"}}  # Go names a program after its folder, and this one is karpenter's for kwok
NEEDED = ("s3", "kubernetes")


class CannotBuild(Exception):
    """The programs of the cluster are not there and cannot be built."""


def cache() -> Path:
    """The folder for what is built: programs, the image's root file system, clusters without a folder of their own."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flowbook-ci" / "cluster"


def folder(module: str) -> Path:
    """Where the programs of a module are, or will be once they are built."""
    digest = hashlib.sha256(FLAGS.get(module, "").encode())
    for name in ("go.mod", "go.sum"):
        digest.update((GO / module / name).read_bytes())
    return cache() / f"{module}-{digest.hexdigest()[:16]}"


def missing(modules: tuple[str, ...] = NEEDED) -> list[str]:
    """The modules among these whose programs are not built."""
    return [module for module in modules if not folder(module).is_dir()]


def program(name: str) -> str:
    """The path of a built program. Raises CannotBuild if it is not there."""
    for module, names in PROGRAMS.items():
        if name in names:
            path = folder(module) / name
            if path.exists():
                return str(path)
            raise CannotBuild(f"{name} is not built.\n  Build it: python -m tests.cluster build {module}")
    raise CannotBuild(f"no module of tests/cluster/go builds {name!r}")


@functools.cache
def why_not_go() -> str:
    """Why nothing can be built here, "" if it can."""
    go = shutil.which("go")
    if go is None:
        return f"no Go here; install Go {'.'.join(map(str, OLDEST_GO))} or later"
    said = subprocess.run([go, "version"], capture_output=True, text=True, check=False, timeout=60).stdout
    found = re.search(r"go(\d+)\.(\d+)", said)
    if found is None or (int(found[1]), int(found[2])) < OLDEST_GO:
        return f"{said.strip() or go} is too old; install Go {'.'.join(map(str, OLDEST_GO))} or later"
    return ""


@contextmanager
def only_one(name: str) -> Iterator[None]:
    """One process of this user at a time does what has this name; the others wait. The lock goes with the process that holds it."""
    cache().mkdir(parents=True, exist_ok=True)
    with open(cache() / f"{name}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"flowbook: waiting for another process ({name})", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(modules: tuple[str, ...] = NEEDED) -> None:
    """Builds what is not built yet. Raises CannotBuild, with the last lines of what Go said."""
    for module in modules:
        if not folder(module).is_dir():
            with only_one(module):
                if not folder(module).is_dir():
                    _build(module)
        os.utime(folder(module))


def _build(module: str) -> None:
    if why_not_go():
        raise CannotBuild(f"{', '.join(PROGRAMS[module])}: {why_not_go()}")
    started = time.monotonic()
    print(f"flowbook: building {', '.join(PROGRAMS[module])}", file=sys.stderr, flush=True)
    fresh = Path(tempfile.mkdtemp(prefix=f"{module}.", dir=cache()))
    try:
        source = GO / module
        for attempt in range(1, TRIES + 1):  # a download that hangs is ended and tried again
            failure = _go(["mod", "download"], source, DOWNLOAD_S)
            if not failure:
                break
            if attempt == TRIES:
                raise CannotBuild(f"the Go modules of {module} cannot be had, tried {TRIES} times.\n{failure}\n  Try again later.")
            time.sleep(attempt * 3)
        out = fresh / "bin"
        out.mkdir()
        if module == "argo":
            source = _mended_argo(fresh / "source")
        failure = _go(["build", "-trimpath", "-ldflags", f"-s -w {FLAGS.get(module, '')}", "-o", f"{out}/", "tool"], source, BUILD_S)
        if failure:
            raise CannotBuild(f"go build in {source} failed.\n{failure}")
        for given, meant in RENAMED.get(module, {}).items():
            os.rename(out / given, out / meant)
        for name in PROGRAMS[module]:
            if not (out / name).exists():
                raise CannotBuild(f"{source}/go.mod has no tool that is called {name}")
        os.rename(out, folder(module))
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    for old in cache().glob(f"{module}-*"):
        if old != folder(module) and time.time() - old.stat().st_mtime > KEEP_S:
            shutil.rmtree(old, ignore_errors=True)
    print(f"flowbook: built {module} in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def _mended_argo(source: Path) -> Path:
    """A copy of the module `argo` with its requirements in it, and in them the file that a module's archive cannot hold.

    argoexec's signal_linux.go is a symbolic link to signal_darwin.go, and archives of Go modules leave links out.
    """
    shutil.copytree(GO / "argo", source)
    failure = _go(["mod", "vendor"], source, DOWNLOAD_S)
    if failure:
        raise CannotBuild(f"the Go modules of argo cannot be copied.\n{failure}")
    folder = source / "vendor/github.com/argoproj/argo-workflows/v3/workflow/executor/osspecific"
    shutil.copy(folder / "signal_darwin.go", folder / "signal_linux.go")
    return source


def module_folder(module: str, path: str) -> Path:
    """Where Go keeps the source of the module `path`, which `module` requires: for CRDs and other files of its."""
    listed = subprocess.run(
        ["go", "list", "-m", "-f", "{{.Dir}}", path], cwd=GO / module, capture_output=True, text=True, check=False, timeout=DOWNLOAD_S
    )
    if listed.returncode or not listed.stdout.strip():
        raise CannotBuild(f"{path} is not among the downloaded modules of {module}: {listed.stderr.strip()[-500:]}")
    return Path(listed.stdout.strip())


def _go(arguments: list[str], where: Path, limit_s: int) -> str:
    """Runs go. Returns what went wrong, "" if nothing did."""
    environment = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false", "GOWORK": "off"}
    try:
        done = subprocess.run(
            ["go", *arguments], cwd=where, env=environment, stderr=subprocess.PIPE, text=True, check=False, timeout=limit_s
        )
    except subprocess.TimeoutExpired:
        return f"  go {arguments[0]} was ended after {limit_s} s"
    return "" if done.returncode == 0 else "\n".join(f"  {line}" for line in done.stderr.splitlines()[-20:]) or "  (it said nothing)"
