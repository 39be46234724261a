"""Settings: where a value may be written, which place wins, and what a wrong one says.

    option  >  FLOWBOOK_*  >  [tool.flowbook] in pyproject.toml  >  user configuration  >  system configuration  >  default

The nearest pyproject.toml upwards from the notebook's folder that has a [tool.flowbook] table counts. Keys that the
system configuration lists under `locked` win over everything. `secrets` is the one setting that adds up over all
places: a name declared secret anywhere stays secret. SETTINGS is the whole list; docs/settings.md is held to it by a test.

Reads files and nothing else: no folder is made here. tomllib and platformdirs are imported when a file is looked for.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowbook.errors import FlowbookError, SettingError
from flowbook.store import preview
from flowbook.store.layout import FLOW_NAME, S3_URL

Reader = Callable[[Any], Any]  # a written value → the value; ValueError(what was expected) if it cannot be used

ENV = "FLOWBOOK_"
NOT_SETTINGS = {"FLOWBOOK_NOTEBOOK", "FLOWBOOK_SCREENSHOTS", "FLOWBOOK_PROJECT_KEY"}  # variables with that prefix that say something else


class UnsupportedPlatform(FlowbookError):
    """flowbook does not run on this operating system."""


@dataclass(frozen=True)
class Setting:
    """One setting: how its value is read from TOML, Python or an environment variable, and what it is for."""

    name: str
    read: Reader
    help: str


@dataclass(frozen=True)
class Settings:
    """All settings of one notebook. `origins` says for each key where its value came from, in words."""

    store: Path | str
    project: str = "default"
    flow: str | None = None
    max_parallel: int | None = None
    gpus: int | None = None
    autorun: bool = False
    durable: bool = False
    keep_runs: int = 20
    secrets: tuple[str, ...] = ()
    s3_endpoint: str | None = None
    s3_region: str | None = None
    s3_profile: str | None = None
    s3_encryption: str | None = None
    kubernetes_context: str | None = None
    kubernetes_namespace: str | None = None
    kubernetes_image: str | None = None
    kubernetes_service_account: str | None = None
    kubernetes_secret: str | None = None
    kubernetes_tiers: tuple[Mapping[str, Any], ...] | None = None
    kubernetes_max_pods: int = 100
    kubernetes_max_gpus: int = 16
    kubernetes_pending: float = 3600.0
    kubernetes_user: int = 1000
    kubernetes_template: bool = False
    kubernetes_scale: float = 1.0
    previews: str = preview.FULL
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)
    warnings: tuple[str, ...] = field(default=(), compare=False)

    @property
    def cluster(self) -> dict[str, Any] | None:
        """What pods of a cluster are told (podspec.Cluster); None where the store is a folder of this machine, which they do not reach."""
        if isinstance(self.store, Path):
            return None
        found = {name.removeprefix("kubernetes_"): value for name, value in vars(self).items() if name.startswith("kubernetes_")}
        found["pending_s"] = found.pop("pending")
        return {name: value for name, value in found.items() if value is not None}

    @property
    def place(self) -> dict[str, Any]:
        """The project's store, as `open_store` takes it. Holds no secret: of the key with which results are signed only the file."""
        if isinstance(self.store, Path):
            return {"kind": "files", "root": str(self.store / self.project), "durable": self.durable}
        bucket, _, prefix = self.store.removeprefix("s3://").partition("/")
        given = {"endpoint": self.s3_endpoint, "region": self.s3_region, "profile": self.s3_profile, "encryption": self.s3_encryption}
        place = {"kind": "s3", "bucket": bucket, "prefix": f"{prefix.strip('/')}/{self.project}".strip("/")}
        return place | {name: value for name, value in given.items() if value} | {"key_file": str(key_file(self.project))}


def _seconds(value: Any) -> float:
    """A number of seconds, or a text such as ``30m``."""
    from flowbook.errors import DefinitionError
    from flowbook.spec.options import parse_duration

    try:
        return parse_duration(str(value)) if not isinstance(value, bool) else 0.0
    except DefinitionError:
        raise ValueError("a time, such as 90s, 15m, 2h") from None


def _share(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = 0.0
    if not 0 < number <= 1 or isinstance(value, bool):
        raise ValueError("a number above 0 and up to 1")
    return number


def _tables(value: Any) -> tuple[Mapping[str, Any], ...]:
    """A list of tables; in an environment variable as JSON. What they mean is checked by those who use them (podspec.read_tiers)."""
    import json

    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        found = None
    if isinstance(found, list) and found and all(isinstance(row, dict) and type(row.get("gpus")) is int for row in found):
        return tuple(found)
    raise ValueError('a list of tables, such as [{gpus = 0}, {gpus = 1, labels = {kind = "l4"}}], in JSON where it is a variable')


def _boolean(value: Any) -> bool:
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise ValueError("true or false")


def _whole(least: int) -> Reader:
    def read(value: Any) -> int:
        expected = f"a whole number, {least} or more"
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError(expected)
        try:
            number = int(value)
        except ValueError:
            raise ValueError(expected) from None
        if number < least:
            raise ValueError(expected)
        return number

    return read


def _name(value: Any) -> str:
    if isinstance(value, str) and FLOW_NAME.match(value):
        return value
    raise ValueError("a name of letters, digits, '_', '.' and '-', at most 100 of them")


def _previews(value: Any) -> str:
    if isinstance(value, str) and value.lower() in preview.MODES:
        return value.lower()
    raise ValueError(f"one of {', '.join(preview.MODES)}")


def _path(value: Any) -> Path:
    if isinstance(value, str | Path) and str(value).strip():
        return Path(value)
    raise ValueError("the path of a folder")


def _store(value: Any) -> Path | str:
    if isinstance(value, str) and "://" in value:
        if S3_URL.match(value):
            return value.rstrip("/")
        raise ValueError("the path of a folder, or s3://BUCKET/PREFIX (a bucket's name has 3 to 63 of a-z, 0-9, '-' and '.')")
    return _path(value)


def _text(example: str) -> Reader:
    def read(value: Any) -> str:
        if isinstance(value, str) and value.strip() and value.isprintable():
            return value.strip()
        raise ValueError(f"a text, such as {example!r}")

    return read


def _endpoint(value: Any) -> str:
    """An address without a password: settings are shown, and go into files that are shared."""
    if isinstance(value, str) and value.startswith(("http://", "https://")) and "@" not in value:
        return value.rstrip("/")
    raise ValueError("an address like 'https://s3.example.org', without a user or a password in it")


def _encryption(value: Any) -> str:
    if isinstance(value, str) and (value in ("AES256", "kms") or (value.startswith("kms:") and value != "kms:")):
        return value
    raise ValueError("AES256, kms, or kms:KEY with the id of a key")


def _names(value: Any) -> tuple[str, ...]:
    parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    if isinstance(parts, list | tuple) and all(isinstance(part, str) for part in parts):
        return tuple(part for part in parts if part)
    raise ValueError("a list of names")


SETTINGS: tuple[Setting, ...] = (
    Setting("store", _store, "folder where runs and their results are kept, or s3://BUCKET/PREFIX"),
    Setting("project", _name, "name under which this work stands in the store"),
    Setting("flow", _name, "name of the notebook's flow; default: the notebook's own name"),
    Setting("max_parallel", _whole(1), "most tasks of a run at once; default: as many as cores, memory and GPUs allow"),
    Setting("gpus", _whole(0), "GPUs that local tasks may use; default: all that are found"),
    Setting("autorun", _boolean, "run a step as soon as its cell is executed"),
    Setting("durable", _boolean, "make each result survive a power cut (fsync), at the price of speed"),
    Setting("keep_runs", _whole(0), "runs of each flow that are kept, the last ones; 0: all"),
    Setting("secrets", _names, "names of variables that must never travel with a run"),
    Setting("s3_endpoint", _endpoint, "address of the S3 server; default: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, else Amazon's"),
    Setting("s3_region", _text("eu-west-1"), "region of the bucket; default: AWS_REGION, AWS_DEFAULT_REGION, else what the bucket says"),
    Setting("s3_profile", _text("research"), "profile of ~/.aws whose credentials are used; default: those of the environment"),
    Setting("s3_encryption", _encryption, "how objects are encrypted: AES256, kms or kms:KEY; default: as the bucket does"),
    Setting("kubernetes_context", _text("my-cluster"), "context of the kubeconfig; default: its current one"),
    Setting("kubernetes_namespace", _text("team-a"), "namespace of the pods; default: that of the context, or the kernel's own"),
    Setting("kubernetes_image", _text("registry/name:tag"), "image of the pods; default: that of the kernel's hub, else python:3.x"),
    Setting("kubernetes_service_account", _text("flowbook-steps"), "account of the pods, for the store's credentials"),
    Setting("kubernetes_secret", _text("flowbook-store"), "Secret whose keys are set as variables in each pod: the store's credentials"),
    Setting("kubernetes_tiers", _tables, "which nodes a step may use, by the GPUs that it asks for"),
    Setting("kubernetes_max_pods", _whole(1), "most pods of a run at once; --yes lifts it"),
    Setting("kubernetes_max_gpus", _whole(0), "most GPUs of a run at once; --yes lifts it"),
    Setting("kubernetes_pending", _seconds, "how long a pod may wait for a node or a quota before its attempt has failed"),
    Setting("kubernetes_user", _whole(1), "user id under which pods run"),
    Setting("kubernetes_template", _boolean, "whether @kubernetes(template=…) may give raw pods"),
    Setting("kubernetes_scale", _share, "share of cpu, memory and disk that is really asked for: to try flows on small clusters"),
    Setting("previews", _previews, "what of values is stored beside them and shown: full, schema (types, shapes, columns), off (types)"),
)
_BY_NAME = {setting.name: setting for setting in SETTINGS}


@dataclass(frozen=True)
class _Place:
    """One place where settings were written: what it is called, its values, and the folder that its paths start from."""

    label: str
    values: Mapping[str, Any]
    folder: Path
    spelling: Callable[[str], str] = str  # how a key is written there

    def read(self, key: str) -> Any:
        """The value of `key` here. Raises SettingError naming place and key."""
        try:
            value = _BY_NAME[key].read(self.values[key])
        except ValueError as expected:
            raise SettingError(
                f"{self.label}: {self.spelling(key)} = {self.values[key]!r} cannot be used; it must be {expected}."
            ) from None
        return self.folder / value.expanduser() if isinstance(value, Path) else value


def user_file() -> Path:
    """Where the user's own settings are looked for."""
    import platformdirs

    return platformdirs.user_config_path("flowbook") / "config.toml"


def system_file() -> Path:
    """Where the settings of this machine are looked for."""
    import platformdirs

    return platformdirs.site_config_path("flowbook") / "config.toml"


def key_file(project: str) -> Path:
    """Where the key is with which results of a project are signed (see store/trust.py). It is made on first use."""
    return user_file().with_name("keys") / f"{project}.key"


def default_store() -> Path:
    """The store when nothing is set: the user's data folder."""
    import platformdirs

    return platformdirs.user_data_path("flowbook")


def load_settings(
    start: Path,
    environ: Mapping[str, str],
    overrides: Mapping[str, Any] | None = None,
    *,
    user: Path | None = None,
    system: Path | None = None,
) -> Settings:
    """The settings that hold for a notebook in the folder `start`.

    `overrides` are options given by hand; None as a value means not given. `user` and `system` stand for `user_file()`
    and `system_file()`. Raises SettingError, naming the place and the key, for a value that cannot be used, a file that
    cannot be read, or an unknown option; an unknown key in a file is a line in `Settings.warnings`.
    """
    start = start.absolute()
    warnings: list[str] = []
    machine, locked = _system_place(system or system_file(), warnings)
    places = [
        _option_place(overrides or {}, start),
        _environment_place(environ, start, warnings),
        _project_place(start, warnings),
        _file_place(user or user_file(), "", warnings),
        machine,
    ]
    values: dict[str, Any] = {"store": default_store()}
    origins = {setting.name: "default" for setting in SETTINGS}
    for key in _BY_NAME:
        written = [place for place in places if place and key in place.values]
        readings = [(place, place.read(key)) for place in written]  # a wrong value is told even where another one wins
        if key in locked:
            readings = _only_system(key, readings, machine, warnings)
        if readings:
            values[key], origins[key] = _together(readings) if key == "secrets" else (readings[0][1], readings[0][0].label)
        if key in locked:
            origins[key] += " (locked)"
    return Settings(**values, origins=origins, warnings=tuple(warnings))


def check_platform(platform: str = sys.platform) -> None:
    """Raises UnsupportedPlatform on Windows, where processes, sockets and file links differ too much."""
    if platform.startswith(("win", "cygwin")):
        raise UnsupportedPlatform(
            "flowbook runs on Linux and macOS. On Windows use it inside WSL: run `wsl --install` once, "
            "then start Jupyter from the Linux shell."
        )


def _together(readings: list[tuple[_Place, Any]]) -> tuple[tuple[str, ...], str]:
    """All names of all places, each once; and the places."""
    names = dict.fromkeys(name for _, value in readings for name in value)
    return tuple(names), " + ".join(place.label for place, _ in readings)


def _only_system(key: str, readings: list[tuple[_Place, Any]], machine: _Place | None, warnings: list[str]) -> list[tuple[_Place, Any]]:
    """The system's reading of a locked key (none: its default); a warning names each place that wanted otherwise."""
    kept = [(place, value) for place, value in readings if place is machine]
    for place, value in readings:
        if place is not machine and value not in [v for _, v in kept]:
            label = machine.label if machine else "system configuration"
            warnings.append(f"{place.label}: {place.spelling(key)} has no effect, {label} locks it.")
    return kept


def _option_place(overrides: Mapping[str, Any], start: Path) -> _Place:
    for key in overrides:
        if key not in _BY_NAME:
            raise SettingError(f"There is no setting {key!r}.{_nearest(key, _BY_NAME)}")
    given = {key: value for key, value in overrides.items() if value is not None}
    return _Place("option", given, start)


def _environment_place(environ: Mapping[str, str], start: Path, warnings: list[str]) -> _Place:
    """FLOWBOOK_MAX_PARALLEL=4. An empty variable counts as not set.

    Only a variable that looks like a misspelt setting is warned of: the prefix is open to others.
    """
    spellings = {ENV + key.upper(): key for key in _BY_NAME}
    given = {key: environ[variable] for variable, key in spellings.items() if environ.get(variable)}
    for variable in sorted(environ):
        if variable.startswith(ENV) and variable not in spellings and variable not in NOT_SETTINGS:
            near = difflib.get_close_matches(variable, spellings, n=1, cutoff=0.85)
            if near:
                warnings.append(f"environment: {variable} is not a setting. Did you mean {near[0]}?")
    return _Place("environment", given, start, lambda key: ENV + key.upper())


def _project_place(start: Path, warnings: list[str]) -> _Place | None:
    """[tool.flowbook] of the nearest pyproject.toml that has one."""
    for folder in (start, *start.parents):
        table = _toml(folder / "pyproject.toml").get("tool", {})
        if isinstance(table, dict) and "flowbook" in table:
            return _checked(folder / "pyproject.toml", table["flowbook"], "tool.flowbook.", warnings)
    return None


def _file_place(path: Path, prefix: str, warnings: list[str]) -> _Place | None:
    return _checked(path, _toml(path), prefix, warnings)


def _system_place(path: Path, warnings: list[str]) -> tuple[_Place | None, tuple[str, ...]]:
    """The system configuration without its `locked`, and the locked keys."""
    table = dict(_toml(path))
    locked = table.pop("locked", [])
    if not isinstance(locked, list) or not all(isinstance(key, str) for key in locked):
        raise SettingError(f"{path}: locked = {locked!r} cannot be used; it must be a list of names.")
    for key in locked:
        if key not in _BY_NAME:
            raise SettingError(f"{path}: locked names {key!r}, which is not a setting.{_nearest(key, _BY_NAME)}")
    return _checked(path, table, "", warnings), tuple(locked)


def _checked(path: Path, table: Any, prefix: str, warnings: list[str]) -> _Place | None:
    """A file's table as a place, without the keys that nobody knows."""
    if not isinstance(table, dict):
        raise SettingError(f"{path}: {prefix.rstrip('.')} must be a table of settings.")
    for key in table:
        if key not in _BY_NAME:
            warnings.append(f"{path}: {prefix}{key} is not a setting.{_nearest(key, _BY_NAME)}")
    known = {key: value for key, value in table.items() if key in _BY_NAME}
    return _Place(str(path), known, path.parent.absolute(), lambda key: prefix + key) if known else None


def _toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; empty if there is none."""
    import tomllib

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingError(f"{path} is not valid TOML: {error}") from None
    except OSError as error:
        raise SettingError(f"{path} cannot be read: {error.strerror}") from None


def _nearest(key: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(key.replace("-", "_").lower(), known, n=1)
    return f" Did you mean {near[0]!r}?" if near else f" Settings are: {', '.join(known)}."
