"""Settings: the order of the places, locked keys, and what a wrong value says."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from flowbook.errors import FlowbookError, SettingError
from flowbook.settings import SETTINGS, Settings, check_platform, load_settings


class Machine:
    """A machine with its own configuration files and a notebook's folder below a project's."""

    def __init__(self, root: Path) -> None:
        self.project = root / "project"
        self.notebooks = self.project / "notebooks"
        self.notebooks.mkdir(parents=True)
        self.user = root / "home" / "config.toml"
        self.system = root / "etc" / "config.toml"
        self.user.parent.mkdir()
        self.system.parent.mkdir()

    def load(self, environ: dict[str, str] | None = None, **overrides: object) -> Settings:
        return load_settings(self.notebooks, environ or {}, overrides, user=self.user, system=self.system)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_without_any_file_the_defaults_hold_and_say_so(machine: Machine) -> None:
    settings = machine.load()

    assert settings == Settings(store=settings.store)
    assert settings.store.name == "flowbook"
    assert set(settings.origins.values()) == {"default"}
    assert settings.warnings == ()


def test_each_place_wins_over_the_ones_below_it(machine: Machine) -> None:
    machine.system.write_text("max_parallel = 1")
    assert machine.load().max_parallel == 1

    machine.user.write_text("max_parallel = 2")
    assert machine.load().max_parallel == 2

    (machine.project / "pyproject.toml").write_text("[tool.flowbook]\nmax_parallel = 3")
    assert machine.load().max_parallel == 3

    environ = {"FLOWBOOK_MAX_PARALLEL": "4"}
    assert machine.load(environ).max_parallel == 4

    settings = machine.load(environ, max_parallel=5)
    assert (settings.max_parallel, settings.origins["max_parallel"]) == (5, "option")


def test_an_option_that_was_not_given_and_an_empty_variable_change_nothing(machine: Machine) -> None:
    machine.user.write_text("gpus = 2")

    settings = machine.load({"FLOWBOOK_GPUS": ""}, gpus=None)

    assert (settings.gpus, settings.origins["gpus"]) == (2, str(machine.user))


def test_the_nearest_pyproject_with_a_flowbook_table_counts(machine: Machine) -> None:
    (machine.project / "pyproject.toml").write_text('[tool.flowbook]\nproject = "outer"')
    (machine.notebooks / "pyproject.toml").write_text("[tool.ruff]\nline-length = 100")
    assert machine.load().project == "outer"

    (machine.notebooks / "pyproject.toml").write_text('[tool.flowbook]\nproject = "inner"')
    settings = machine.load()
    assert settings.project == "inner"
    assert settings.origins["project"] == str(machine.notebooks / "pyproject.toml")


def test_a_locked_key_wins_over_everything_and_the_loser_is_told(machine: Machine) -> None:
    machine.system.write_text('locked = ["project", "durable"]\nproject = "team"')
    machine.user.write_text('project = "mine"')

    settings = machine.load({"FLOWBOOK_DURABLE": "1"}, project="theirs")

    assert (settings.project, settings.durable) == ("team", False)
    assert settings.origins["project"] == f"{machine.system} (locked)"
    assert settings.origins["durable"] == "default (locked)"
    assert settings.warnings == (
        f"option: project has no effect, {machine.system} locks it.",
        f"{machine.user}: project has no effect, {machine.system} locks it.",
        f"environment: FLOWBOOK_DURABLE has no effect, {machine.system} locks it.",
    )


def test_a_name_declared_secret_anywhere_stays_secret(machine: Machine) -> None:
    machine.user.write_text('secrets = ["TOKEN"]')

    settings = machine.load({"FLOWBOOK_SECRETS": "PASSWORD, TOKEN"})

    assert settings.secrets == ("PASSWORD", "TOKEN")
    assert settings.origins["secrets"] == f"environment + {machine.user}"


def test_a_relative_store_starts_from_the_folder_of_the_file_that_names_it(machine: Machine) -> None:
    (machine.project / "pyproject.toml").write_text('[tool.flowbook]\nstore = "runs"')
    assert machine.load().store == machine.project / "runs"
    assert machine.load({"FLOWBOOK_STORE": "here"}).store == machine.notebooks / "here"
    assert machine.load({"FLOWBOOK_STORE": "~/there"}).store == Path.home() / "there"


@pytest.mark.parametrize(
    ("key", "written", "expected"),
    [
        ("store", '""', "the path of a folder"),
        ("store", "3", "the path of a folder"),
        ("project", '"../other"', "a name of letters"),
        ("flow", '"my flow"', "a name of letters"),
        ("max_parallel", "0", "a whole number, 1 or more"),
        ("max_parallel", "true", "a whole number, 1 or more"),
        ("gpus", "1.5", "a whole number, 0 or more"),
        ("gpus", '"many"', "a whole number, 0 or more"),
        ("autorun", '"perhaps"', "true or false"),
        ("durable", "1", "true or false"),
        ("secrets", "[1]", "a list of names"),
    ],
)
def test_a_value_that_cannot_be_used_names_file_key_and_what_was_expected(machine: Machine, key: str, written: str, expected: str) -> None:
    path = machine.project / "pyproject.toml"
    path.write_text(f"[tool.flowbook]\n{key} = {written}")

    with pytest.raises(SettingError) as caught:
        machine.load()

    assert str(caught.value).startswith(f"{path}: tool.flowbook.{key} = ")
    assert f"it must be {expected}" in str(caught.value)


def test_a_wrong_value_is_told_even_where_another_place_wins(machine: Machine) -> None:
    machine.user.write_text("gpus = -1")

    with pytest.raises(SettingError, match="gpus = -1"):
        machine.load(gpus=1)


def test_a_wrong_variable_is_named_as_it_is_written(machine: Machine) -> None:
    with pytest.raises(SettingError, match="environment: FLOWBOOK_MAX_PARALLEL = 'two' cannot be used"):
        machine.load({"FLOWBOOK_MAX_PARALLEL": "two"})


def test_an_unknown_key_is_a_warning_with_the_nearest_name(machine: Machine) -> None:
    machine.user.write_text("max-paralel = 2\ncolour = 1")

    first, second = machine.load().warnings

    assert first == f"{machine.user}: max-paralel is not a setting. Did you mean 'max_parallel'?"
    assert "Settings are: store, project" in second


def test_a_misspelt_variable_is_a_warning_and_foreign_ones_are_left_alone(machine: Machine) -> None:
    settings = machine.load({"FLOWBOOK_MAXPARALLEL": "2", "FLOWBOOK_NOTEBOOK": "a.ipynb", "FLOWBOOK_OF_MY_TEAM": "x"})

    assert settings.warnings == ("environment: FLOWBOOK_MAXPARALLEL is not a setting. Did you mean FLOWBOOK_MAX_PARALLEL?",)


def test_an_unknown_option_is_an_error(machine: Machine) -> None:
    with pytest.raises(SettingError, match=r"There is no setting 'stor'\. Did you mean 'store'"):
        machine.load(stor="x")


def test_a_file_that_is_no_toml_is_named(machine: Machine) -> None:
    machine.user.write_text("store = \n")

    with pytest.raises(SettingError, match=r"config.toml is not valid TOML: .*line 1"):
        machine.load()

    machine.user.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingError, match="not valid TOML"):
        machine.load()


def test_a_flowbook_entry_that_is_no_table_is_named(machine: Machine) -> None:
    (machine.project / "pyproject.toml").write_text("[tool]\nflowbook = 3")

    with pytest.raises(SettingError, match=r"tool.flowbook must be a table"):
        machine.load()


@pytest.mark.parametrize("locked", ['"store"', "[1]", '["stroe"]'])
def test_a_wrong_lock_is_an_error(machine: Machine, locked: str) -> None:
    machine.system.write_text(f"locked = {locked}")

    with pytest.raises(SettingError, match="locked"):
        machine.load()


def test_locked_means_something_only_in_the_system_configuration(machine: Machine) -> None:
    machine.user.write_text('locked = ["store"]')

    assert machine.load().warnings[0].startswith(f"{machine.user}: locked is not a setting.")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_may_not_be_read_is_named(machine: Machine) -> None:
    machine.user.write_text("gpus = 1")
    machine.user.chmod(0)

    with pytest.raises(SettingError, match=r"config.toml cannot be read"):
        machine.load()


def test_the_list_of_settings_is_what_the_dataclass_holds() -> None:
    assert [setting.name for setting in SETTINGS] == [f.name for f in fields(Settings)][:-2]


def test_windows_is_told_of_wsl() -> None:
    check_platform("linux")
    check_platform("darwin")

    with pytest.raises(FlowbookError, match="inside WSL"):
        check_platform("win32")


def test_importing_the_settings_imports_no_parser() -> None:
    code = "import sys, flowbook.settings; print(sorted({'tomllib', 'platformdirs'} & set(sys.modules)))"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
