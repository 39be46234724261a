"""The images of the cluster, made without a registry: a stock Python, the pause container, and flowbook from its Dockerfile.

The stock Python is Debian's, made by mmdebstrap with this machine's own apt sources and dressed like the official image: `python` and
`pip` are there, flowbook is not. It is kept outside the checkout, as the packages that the Dockerfile's build needs are.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from tests.cluster.build import TRIES, cache, only_one

ROOT = Path(__file__).parent.parent.parent
PYTHON = "localhost/python:3.11"
FLOWBOOK = "localhost/flowbook:test"
SCIENCE = "localhost/science:3.11"
SUITE = "bookworm"  # whose Python is 3.11
PACKAGES = "python3,python3-pip,ca-certificates"
DRESS = 'ln -s python3 "$1/usr/bin/python"; rm -f "$1"/usr/lib/python3*/EXTERNALLY-MANAGED'
LIMIT_S = 900
_ENV = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "PYTHON_VERSION=3.11"]


class CannotMakeImage(Exception):
    """An image of the cluster cannot be made."""


def pause(folder: Path) -> Path:
    """The image of a pod's first container, which only sleeps, as an archive in `folder`."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise CannotMakeImage("no busybox here; apt-get install busybox-static")
    layer = folder / "pause.layer"
    with tarfile.open(layer, "w") as tar:
        program = tarfile.TarInfo("bin/busybox")
        program.mode, program.size = 0o755, os.stat(busybox).st_size
        with open(busybox, "rb") as file:
            tar.addfile(program, file)
    return _archive(layer, folder / "pause.tar", "localhost/pause:1", {"Entrypoint": ["/bin/busybox", "sleep", "2147483647"]})


def of_program(program: Path, name: str, folder: Path) -> Path:
    """An image with nothing but this program in /bin, on the path, as an archive in `folder`."""
    layer = folder / f"{program.name}.layer"
    with tarfile.open(layer, "w") as tar:
        tar.add(program, f"bin/{program.name}")
    return _archive(layer, folder / f"{program.name}.tar", name, {"Entrypoint": [program.name], "Env": _ENV[:1]})


def python() -> Path:
    """The stock Python as an archive; made on first use, 70 s on two free cores. Raises CannotMakeImage."""
    digest = hashlib.sha256("|".join((SUITE, PACKAGES, DRESS, *_ENV)).encode()).hexdigest()[:16]
    kept = cache() / f"python-{digest}.tar"
    if not kept.exists():
        with only_one("python"):
            if not kept.exists():
                _bootstrap(kept)
    return kept


def _bootstrap(kept: Path) -> None:
    print("flowbook: making a stock Python image", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="python.", dir=cache()) as temporary:
        fresh = Path(temporary)
        os.chmod(fresh, 0o755)  # apt fetches as a user of its own
        layer = fresh / "layer.tar"
        command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=apt", f"--include={PACKAGES}", f"--customize-hook={DRESS}", SUITE]
        command += [str(layer), *map(str, apt_sources())]
        for attempt in range(1, TRIES + 1):
            failure = _run(command, LIMIT_S)
            if not failure:
                break
            if attempt == TRIES:
                raise CannotMakeImage(f"mmdebstrap failed {TRIES} times.\n{failure}")
        os.rename(_archive(layer, fresh / "image.tar", PYTHON, {"Cmd": ["python3"], "Env": _ENV}), kept)
    for old in cache().glob("python-*.tar"):
        if old != kept:
            old.unlink()


def apt_sources() -> list[Path]:
    """The files that tell this machine's apt where Debian is: those that name the suite, and no other vendor's."""
    places = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    found = [path for path in places if path.is_file() and path.suffix in (".list", ".sources") and _is_debian(path.read_text())]
    if not found:
        raise CannotMakeImage(f"no file in /etc/apt names Debian {SUITE}, so there is nothing to make a Python image from")
    return found


def _is_debian(text: str) -> bool:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    return any(SUITE in line.split() for line in lines) and any(
        "debian" in line.lower() and ("URIs" in line or "deb " in line) for line in lines
    )


def flowbook(folder: Path) -> Path:
    """The image that users build from docker/Dockerfile, on the stock Python above, as an archive; kept until flowbook changes.

    Nothing is fetched in the build: the wheels are gathered before, in the versions of requirements-dev.txt. `folder` is for what is
    made on the way. Raises CannotMakeImage.
    """
    if shutil.which("podman") is None:
        raise CannotMakeImage("no podman here; apt-get install podman")
    context = folder / "context"
    wheels = context / "wheels"
    shutil.rmtree(context, ignore_errors=True)
    wheels.mkdir(parents=True)
    dockerfile = Path(shutil.copy(ROOT / "docker" / "Dockerfile", context))
    base = python()
    with only_one("podman"):
        _must([uv(), "build", "--quiet", "--wheel", "--out-dir", str(wheels), str(ROOT)], "flowbook's wheel cannot be built")
        own = next(wheels.glob("flowbook-*.whl"))
        needed = gathered(own)
        # no-cache: what a layer is made of by `RUN --mount` is not looked at, so that of another flowbook would be taken.
        # chroot: other kinds of isolation need more of root than a container on a build machine has. It has no network of its own.
        build = ["build", "--quiet", "--no-cache", "--isolation=chroot", "--network=host", "--pull=never"]
        made_of = f"{base.name}|{needed.name}|{' '.join(build)}"
        digest = hashlib.sha256(own.read_bytes() + dockerfile.read_bytes() + made_of.encode()).hexdigest()[:16]
        kept = cache() / f"flowbook-{digest}.tar"
        if kept.exists():
            return kept
        shutil.copytree(needed, wheels, dirs_exist_ok=True)
        storage = cache() / f"podman-{base.stem}"
        # At most 50 characters, and always the same for the same storage: podman insists on both.
        scratch = f"/run/flowbook-{hashlib.sha256(str(storage).encode()).hexdigest()[:8]}"
        podman = ["podman", "--root", str(storage), "--runroot", scratch]
        podman += ["--storage-driver", "overlay", "--cgroup-manager", "cgroupfs"]
        if subprocess.run([*podman, "image", "exists", PYTHON], check=False, timeout=LIMIT_S).returncode:
            _must([*podman, "load", "--quiet", "--input", str(base)], "podman cannot load the Python image")
        build += [f"--build-arg=BASE={PYTHON}", "--build-arg=PIP_NO_INDEX=1", f"--tag={FLOWBOOK}", str(context)]
        _must([*podman, *build], "docker/Dockerfile cannot be built")
        made = kept.with_suffix(".new")
        made.unlink(missing_ok=True)
        _must([*podman, "save", "--quiet", "--output", str(made), FLOWBOOK], "podman cannot save flowbook's image")
        for old in cache().glob("flowbook-*.tar"):
            old.unlink()
        os.rename(made, kept)
        _run([*podman, "image", "prune", "--force"], LIMIT_S)  # the layers of an earlier build
    return kept


def science(folder: Path) -> Path:
    """The stock Python with scikit-learn and what it needs, from this environment's own packages, as an archive; kept for their versions.

    `folder` is for what is made on the way. Raises CannotMakeImage.
    """
    if sys.version_info[:2] != (3, 11):
        raise CannotMakeImage("the packages of this environment are for another Python than the image's, which is 3.11")
    base, needed = python(), _closure("scikit-learn")
    digest = hashlib.sha256("|".join((base.name, *(f"{each.name} {each.version}" for each in needed))).encode()).hexdigest()[:16]
    kept = cache() / f"science-{digest}.tar"
    with only_one("science"):
        if not kept.exists():
            layer = folder / "science.layer"
            with tarfile.open(layer, "w") as tar:
                for each in needed:
                    for file in each.files or ():
                        if ".." not in file.parts and "__pycache__" not in file.parts and "tests" not in file.parts:
                            tar.add(file.locate(), f"usr/local/lib/python3.11/dist-packages/{file}", recursive=False)
            for old in cache().glob("science-*.tar"):
                old.unlink()
            os.rename(_archive(layer, folder / "science.tar", SCIENCE, {"Cmd": ["python3"], "Env": _ENV}, base), kept)
    return kept


def _closure(name: str) -> list[metadata.Distribution]:
    """An installed package and all that it needs."""
    found: dict[str, metadata.Distribution] = {}
    queue = [Requirement(name)]
    while queue:
        wanted = queue.pop()
        if wanted.name not in found and (wanted.marker is None or wanted.marker.evaluate({"extra": ""})):
            found[wanted.name] = metadata.distribution(wanted.name)
            queue += map(Requirement, found[wanted.name].requires or ())
    return [found[each] for each in sorted(found)]


def uv() -> str:
    """The path of uv: on the path, or in this environment, where .ci/venv puts it."""
    found = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if found is None:
        raise CannotMakeImage("no uv here; pip install uv")
    return found


def gathered(wheel: Path) -> Path:
    """A folder with the wheels of all that `wheel` needs, for Python 3.11; kept, one for each set of requirements."""
    pins = ROOT / "requirements-dev.txt"
    digest = hashlib.sha256(pins.read_bytes() + (ROOT / "pyproject.toml").read_bytes()).hexdigest()[:16]
    kept = cache() / f"wheels-{digest}"
    if not kept.is_dir():
        fresh = Path(tempfile.mkdtemp(prefix="wheels.", dir=cache()))
        pip = [uv(), "run", "--quiet", "--no-project", "--isolated", "--python", "3.11", "--with", "pip", "python", "-m", "pip"]
        _must(
            [*pip, "download", "--quiet", "--only-binary=:all:", "-c", str(pins), "-d", str(fresh), str(wheel)], "the wheels cannot be had"
        )
        for own in fresh.glob("flowbook-*.whl"):
            own.unlink()
        for old in cache().glob("wheels-*"):
            shutil.rmtree(old)
        os.rename(fresh, kept)
    return kept


def _archive(layer: Path, out: Path, name: str, config: dict[str, Any], base: Path | None = None) -> Path:
    """Writes an image of one layer, or of one more than `base` has, as `docker save` would. The layer's file is removed."""
    digest = hashlib.sha256()
    with open(layer, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    with contextlib.ExitStack() as opened:
        below = opened.enter_context(tarfile.open(base)) if base is not None else None
        under = _layers(below) if below is not None else {}
        diffs = [*under.values(), f"sha256:{digest.hexdigest()}"]
        about: dict[str, Any] = {"architecture": _architecture(), "os": "linux", "config": config}
        about |= {"rootfs": {"type": "layers", "diff_ids": diffs}, "history": [{"created_by": "flowbook's tests"}] * len(diffs)}
        content = json.dumps(about).encode()
        config_name, top = f"{hashlib.sha256(content).hexdigest()}.json", f"layer{len(under) or ''}.tar"
        manifest = json.dumps([{"Config": config_name, "RepoTags": [name], "Layers": [*under, top]}]).encode()
        tar = opened.enter_context(tarfile.open(out, "w"))
        for each, data in (("manifest.json", manifest), (config_name, content)):
            entry = tarfile.TarInfo(each)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
        for each in under:
            assert below is not None
            tar.addfile(below.getmember(each), below.extractfile(each))
        tar.add(layer, top)
    layer.unlink()
    return out


def _layers(image: tarfile.TarFile) -> dict[str, str]:
    """The layers of an archive of ours, lowest first: file → digest of its content."""
    [about] = json.load(image.extractfile("manifest.json") or io.BytesIO())
    config = json.load(image.extractfile(about["Config"]) or io.BytesIO())
    return dict(zip(about["Layers"], config["rootfs"]["diff_ids"], strict=True))


def _architecture() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)


def _must(command: list[str], what: str) -> None:
    failure = _run(command, LIMIT_S)
    if failure:
        raise CannotMakeImage(f"{what}: {command[0]} failed.\n{failure}")


def _run(command: list[str], limit_s: int) -> str:
    """Runs a command; returns the last lines of what it said if it failed, "" if it did not."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False, timeout=limit_s
        )
    except OSError as error:
        return f"  {error.strerror}: {command[0]}"
    except subprocess.TimeoutExpired:
        return f"  ended after {limit_s} s"
    return "" if done.returncode == 0 else "\n".join(f"  {line}" for line in done.stdout.splitlines()[-15:]) or "  (it said nothing)"
