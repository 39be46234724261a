"""The commands of the test cluster: see docs/cluster.md."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.cluster import optional
from tests.cluster.build import NEEDED, PROGRAMS, CannotBuild, build
from tests.cluster.cluster import Cluster, ClusterError, NotHere, default_home, down, give_secret, running, to_run, up, why_not
from tests.cluster.images import CannotMakeImage, python


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description="A real Kubernetes and a real S3 server on this machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("up", "bring the cluster up, or find the one that runs"),
        ("down", "end it, and all that it started"),
        ("status", "tell what runs"),
        ("build", "build the programs and the image, and start nothing"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        if name == "build":
            command.add_argument("modules", nargs="*", choices=[*PROGRAMS, []], help=f"default: {' '.join(NEEDED)}, and the image")
        else:
            command.add_argument("--dir", type=Path, default=default_home(), help="the cluster's folder (default: %(default)s)")
        if name == "up":
            command.add_argument("--with", dest="extra", default="", metavar="PART,…", help=f"optional parts: {', '.join(optional.PARTS)}")
    asked = parser.parse_args(arguments)
    try:
        return {"up": _up, "down": _down, "status": _status, "build": _build}[asked.command](asked)
    except (ClusterError, CannotBuild, CannotMakeImage) as error:
        print(f"flowbook: {error}", file=sys.stderr)
        return 3 if isinstance(error, NotHere) else 1


def _up(asked: argparse.Namespace) -> int:
    extra = tuple(filter(None, asked.extra.split(",")))
    if unknown := [name for name in extra if name not in optional.PARTS]:
        raise ClusterError(f"--with {','.join(unknown)}: no such part; there are {', '.join(optional.PARTS)}")
    cluster = up(asked.dir, extra)
    assert cluster.s3 is not None
    give_secret(cluster)
    print(f"cluster    {asked.dir.resolve() / 'cluster.json'}")
    print(f"kubectl    export KUBECONFIG={cluster.kubeconfig}")
    print(f"S3         {cluster.s3.endpoint}, key {cluster.s3.access_key}, secret {cluster.s3.secret_key}, bucket {cluster.s3.bucket}")
    print(f"image      {cluster.image}, a stock Python that the node has (it can pull no image)")
    print(f"tests      FLOWBOOK_TEST_CLUSTER={asked.dir.resolve()} pytest tests/cluster")
    print(f"end it     python -m tests.cluster down --dir {asked.dir.resolve()}")
    _tell_flows(cluster)
    return 0


def _tell_flows(cluster: Cluster) -> None:
    """What a person types to run a flow there, as it can be copied."""
    print("\nto run a flow in its pods:\n")
    print("\n".join(f"export {name}={value}" for name, value in to_run(cluster).items()))
    print("python flow.py --with kubernetes run")


def _down(asked: argparse.Namespace) -> int:
    print(f"{asked.dir.resolve()}: {'ended' if down(asked.dir) else 'no cluster here'}")
    return 0


def _status(asked: argparse.Namespace) -> int:
    cluster = running(asked.dir.resolve())
    if cluster is None:
        print(f"{asked.dir.resolve()}: no cluster runs here")
        return 1
    for name, state in cluster.parts().items():
        print(f"{name:24} {'runs' if state['code'] is None else 'ended with code ' + str(state['code']):24} {state['log']}")
    print(f"image {cluster.image}")
    _tell_flows(cluster)
    return 0


def _build(asked: argparse.Namespace) -> int:
    reason = why_not(may_build=True)
    if reason:
        raise NotHere(f"no cluster can run here: {reason}")
    build(tuple(asked.modules) or NEEDED)
    if not asked.modules:
        python()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
