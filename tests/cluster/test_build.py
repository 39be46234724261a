"""How the cluster's programs are built and kept, on a Go module of three lines."""

from __future__ import annotations

import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from tests.cluster import build
from tests.cluster.build import CannotBuild

MAIN = 'package main\n\nimport "fmt"\n\nfunc main() { fmt.Println("built") }\n'


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The source of the only module that there is, "s3", in a cache of the test's own. Skips without Go."""
    if build.why_not_go():
        pytest.skip(build.why_not_go())
    source = tmp_path / "go" / "s3"
    (source / "versitygw").mkdir(parents=True)
    (source / "go.mod").write_text("module flowbook.test/s3\n\ngo 1.25.0\n\ntool flowbook.test/s3/versitygw\n")
    (source / "go.sum").write_text("")
    (source / "versitygw" / "main.go").write_text(MAIN)
    monkeypatch.setattr(build, "GO", source.parent)
    monkeypatch.setattr(build, "cache", lambda: tmp_path / "cache")
    return source


def left(module: Path) -> list[str]:
    """What stands in the cache, but for locks."""
    return sorted(path.name for path in build.cache().iterdir() if path.suffix != ".lock")


def test_a_program_is_built_once_and_kept(module: Path) -> None:
    assert build.missing(("s3",)) == ["s3"]
    build.build(("s3",))
    inode = Path(build.program("versitygw")).stat().st_ino
    build.build(("s3",))

    assert Path(build.program("versitygw")).stat().st_ino == inode
    assert subprocess.run([build.program("versitygw")], capture_output=True, text=True, check=True).stdout == "built\n"
    assert left(module) == [build.folder("s3").name]


def test_other_requirements_are_other_programs(module: Path) -> None:
    build.build(("s3",))
    before = build.folder("s3")
    (module / "go.mod").write_text((module / "go.mod").read_text() + "\n// another state\n")

    assert build.missing(("s3",)) == ["s3"]
    assert build.folder("s3") != before


def test_what_cannot_be_compiled_says_so_and_leaves_nothing(module: Path) -> None:
    (module / "versitygw" / "main.go").write_text(MAIN.replace("Println", "Printline"))

    with pytest.raises(CannotBuild, match=r"(?s)go build in .*/s3 failed\..*undefined: fmt\.Printline"):
        build.build(("s3",))

    assert left(module) == []
    with pytest.raises(CannotBuild, match=r"versitygw is not built.\n  Build it: python -m tests.cluster build s3"):
        build.program("versitygw")


def test_a_module_that_cannot_be_had_is_tried_again_and_named(module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (module / "go.mod").write_text((module / "go.mod").read_text() + "\nrequire flowbook.invalid/none v1.0.0\n")
    monkeypatch.setenv("GOPROXY", "off")
    monkeypatch.setenv("GONOSUMDB", "*")
    monkeypatch.setattr("time.sleep", lambda _: None)

    with pytest.raises(CannotBuild, match=r"(?s)the Go modules of s3 cannot be had, tried 3 times.*flowbook\.invalid/none"):
        build.build(("s3",))

    assert left(module) == []


def test_a_module_without_the_program_is_named(module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(build.PROGRAMS, "s3", ("versitygw", "another"))

    with pytest.raises(CannotBuild, match="go.mod has no tool that is called another"):
        build.build(("s3",))

    assert left(module) == []


def test_two_who_build_at_once_build_once(module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    right = build._build

    def counted(name: str) -> None:
        built.append(name)
        right(name)

    monkeypatch.setattr(build, "_build", counted)
    threads = [threading.Thread(target=build.build, args=(("s3",),)) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()

    assert built == ["s3"]


def test_without_go_it_is_said_which_programs_lack(module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "why_not_go", lambda: "no Go here; install Go 1.25 or later")

    with pytest.raises(CannotBuild, match="^versitygw: no Go here; install Go 1.25 or later$"):
        build.build(("s3",))


def test_an_old_go_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = tmp_path / "go"
    old.write_text("#!/bin/sh\necho go version go1.19.8 linux/amd64\n")
    old.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(old))
    build.why_not_go.cache_clear()
    try:
        assert build.why_not_go() == "go version go1.19.8 linux/amd64 is too old; install Go 1.25 or later"
    finally:
        build.why_not_go.cache_clear()
