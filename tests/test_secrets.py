"""Secret variables of a step: where they come from, what is said when they are not there, and that no message holds a value."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowbook.spec.secrets import Secret, WrongSource, parse_source
from flowbook.worker.secrets import SecretError, set_secrets

VALUE = "hunter2secret"


def set_from(*sources: Any, environ: dict[str, str] | None = None, override: bool = False, role: str | None = None) -> dict[str, str]:
    """The environment afterwards."""
    environ = {} if environ is None else environ
    set_secrets([parse_source(source, role, override).to_text() for source in sources], environ)
    return environ


def said(*sources: Any, **given: Any) -> str:
    environ = given.setdefault("environ", {"PATH": "/bin"})
    before = dict(environ)
    with pytest.raises(SecretError) as raised:
        set_from(*sources, **given)
    assert environ == before and VALUE not in str(raised.value)
    return str(raised.value)


SOURCES = [
    ("TOKEN", Secret("env", "TOKEN", "TOKEN")),
    ("env:TOKEN", Secret("env", "TOKEN", "TOKEN")),
    ("env:TOKEN=HF_TOKEN", Secret("env", "TOKEN", "HF_TOKEN")),
    ("file:/run/keys.env", Secret("file", "/run/keys.env")),
    ("file:a=b.env", Secret("file", "a=b.env")),
    ("KEY=file:/run/key", Secret("file", "/run/key", "KEY")),
    ("aws-secrets-manager.prod/db", Secret("aws-secrets-manager", "prod/db")),
    ("aws-secrets-manager:arn:aws:x", Secret("aws-secrets-manager", "arn:aws:x")),
    ("kubernetes:team-db.prod", Secret("kubernetes", "team-db.prod")),
    ({"type": "kubernetes", "id": "db"}, Secret("kubernetes", "db")),
    ({"type": "env", "id": "TOKEN"}, Secret("env", "TOKEN", "TOKEN")),
    ({"type": "vault", "id": "x", "role": "r", "options": {"v": 1}}, Secret("vault", "x", role="r", options={"v": 1})),
]


@pytest.mark.parametrize(("source", "expected"), SOURCES)
def test_a_source_is_read_and_kept_as_text(source: Any, expected: Secret) -> None:
    found = parse_source(source)

    assert found == expected
    assert Secret.from_text(found.to_text()) == found
    if isinstance(source, str):
        assert parse_source(found.written) == found


@pytest.mark.parametrize("name", ["My_DB", "a b", "a/KEY", "-db", "db-", "a..b", "x" * 254])
def test_a_name_that_no_secret_of_a_cluster_can_have_is_refused(name: str) -> None:
    with pytest.raises(WrongSource, match="is no name of a Secret in Kubernetes"):
        parse_source(f"kubernetes:{name}")
    with pytest.raises(WrongSource, match="takes no options"):
        parse_source({"type": "kubernetes", "id": "db", "options": {"key": "A"}})


@given(
    st.one_of(
        st.text(max_size=20), st.integers(), st.dictionaries(st.sampled_from(["type", "id", "role", "options", "x"]), st.text(max_size=3))
    )
)
def test_every_source_is_either_read_or_refused(source: Any) -> None:
    try:
        assert Secret.from_text(parse_source(source).to_text()).name
    except WrongSource as wrong:
        assert str(wrong)


def test_a_variable_of_the_environment_is_set_under_its_name() -> None:
    assert set_from("env:TOKEN=HF_TOKEN", environ={"TOKEN": VALUE}) == {"TOKEN": VALUE, "HF_TOKEN": VALUE}
    assert set_from("TOKEN", environ={"TOKEN": VALUE}) == {"TOKEN": VALUE}


def test_inline_values_are_for_trying_out() -> None:
    assert set_from('inline:{"A": "1"}', {"type": "inline", "options": {"env_vars": {"B": "2"}}}) == {"A": "1", "B": "2"}
    assert VALUE not in repr(parse_source(f'inline:{{"A": "{VALUE}"}}'))


FILES = [
    ("A=1\nB = 2\n".replace(" = ", "="), {"A": "1", "B": "2"}),
    ('# keys\n\nexport A=\'x y\'  # why\nB="q\\"q"\nC=\n', {"A": "x y", "B": 'q"q', "C": ""}),
    ("A=x=y==\r\nB=2", {"A": "x=y==", "B": "2"}),
    ('{"A": "1", "B": 2}', {"A": "1", "B": "2"}),
    ("\ufeffA=1", {"A": "1"}),
    ("", {}),
]


@pytest.mark.parametrize(("text", "expected"), FILES)
def test_a_file_lists_variables(tmp_path: Path, text: str, expected: dict[str, str]) -> None:
    (tmp_path / "keys").write_text(text, newline="")

    assert set_from(f"file:{tmp_path}/keys") == expected


def test_a_whole_file_can_be_one_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key.pem").write_text("-----BEGIN\nabc\n")
    monkeypatch.setenv("HOME", str(tmp_path))

    assert set_from("KEY=file:~/key.pem") == {"KEY": "-----BEGIN\nabc"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"A=1\nB={VALUE} x", "in line 2\n    write NAME=value in each line"),
        (f"A='{VALUE}", "in line 1"),
        (VALUE, 'in line 1\n    write NAME=value in each line, with quotes around spaces, or a JSON object; "NAME=file:PATH"'),
        (f"1A={VALUE}", "in line 1"),
        (f'{{"A": "{VALUE}"', "is no JSON, in line 1"),
        (f'{{"A": ["{VALUE}"]}}', "gives a value of A that no variable can have"),
        (f'{{"A b": "{VALUE}"}}', "gives a name that no variable can have"),
        ('{"A": true}', "gives a value of A that no variable can have"),
    ],
)
def test_a_file_that_cannot_be_read_names_the_line_and_no_value(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "keys").write_text(text)

    assert message in said(f"file:{tmp_path}/keys")


def test_what_is_missing_names_the_source_and_the_remedy(tmp_path: Path) -> None:
    assert said("TOKEN") == (
        "the secret env:TOKEN is not set in the environment\n    set it where the run is started (export TOKEN=…), or name another source; "
        "for a pod of a cluster kubernetes:NAME"
    )
    assert "the secret file:nothing.env cannot be read: No such file or directory" in said("file:nothing.env")
    assert "cannot be read: Is a directory" in said(f"file:{tmp_path}")
    (tmp_path / "big").write_bytes(b"x" * (2**20 + 1))
    assert "is too large\n    at most 1 MB" in said(f"KEY=file:{tmp_path}/big")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    assert "is no text in UTF-8" in said(f"KEY=file:{tmp_path}/binary")


def test_a_variable_that_is_there_is_not_replaced_unless_allowed() -> None:
    source = f'inline:{{"A": "{VALUE}"}}'

    assert "inline gives A, which the environment has with another value\n    remove it" in said(source, environ={"A": "other"})
    assert set_from(source, environ={"A": "other"}, override=True) == {"A": VALUE}
    assert set_from(source, environ={"A": VALUE}) == {"A": VALUE}


def test_two_sources_of_one_variable_contradict_each_other_before_anything_is_set() -> None:
    message = said(f'inline:{{"B": "x", "A": "{VALUE}"}}', "env:T=A", environ={"T": "other"})

    assert "inline and env:T both give A, with different values" in message


# ---- Secrets of a cluster ---------------------------------------------------------------------------------------------------


def pod_environ(**secrets: dict[str, str]) -> dict[str, str]:
    """As podspec.manifest and a kubelet make it of Secrets, by name."""
    carriers = {f"FLOWBOOK_SECRET_{number}_{key}": value for number, keys in enumerate(secrets.values(), 1) for key, value in keys.items()}
    return {"PATH": "/bin", "FLOWBOOK_POD_SECRETS": " ".join(secrets), **carriers}


def test_the_keys_of_secrets_of_the_cluster_become_variables_and_what_carried_them_goes() -> None:
    environ = pod_environ(db={"A": VALUE, "B": ""}, keys={"C": "3"})

    assert set_from("kubernetes:keys", "kubernetes:db", environ=environ) == {"PATH": "/bin", "A": VALUE, "B": "", "C": "3"}


def test_a_secret_of_the_cluster_is_checked_as_any_other_source() -> None:
    bad = said("kubernetes:db", environ=pod_environ(db={"A": "1", "tls.crt": VALUE}))
    replaced = said("kubernetes:db", environ=pod_environ(db={"PATH": VALUE}))

    assert "kubernetes:db has the key 'tls.crt', which is no name of a variable\n    rename it in the Secret" in bad
    assert "kubernetes:db gives PATH, which the environment has with another value" in replaced
    assert set_from("kubernetes:db", environ=pod_environ(db={"PATH": VALUE}), override=True) == {"PATH": VALUE}


def test_a_step_on_this_machine_has_no_secret_of_a_cluster() -> None:
    message = said("kubernetes:db")

    assert message.startswith(
        "kubernetes:db is a Secret of a cluster, and this step runs on this machine\n    run it with --with kubernetes"
    )
    assert "env:NAME, file:PATH" in message


# ---- secret managers ------------------------------------------------------------------------------------------------------


@pytest.fixture
def offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Installs a package with an entry point `vault`, whose module has this text."""

    def install(code: str) -> None:
        (tmp_path / "vault_of_test.py").write_text(code)
        info = tmp_path / "vault_of_test-1.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vault-of-test\nVersion: 1\n")
        (info / "entry_points.txt").write_text("[flowbook.secrets]\nvault = vault_of_test:fetch\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "vault_of_test", raising=False)
        importlib.invalidate_caches()

    return install


def test_a_secret_manager_is_an_entry_point(offer: Callable[[str], None]) -> None:
    offer("def fetch(source, role, **options):\n    return {'A': f'{source} {role} {options}'}")

    assert set_from("vault:prod/db", role="reader") == {"A": "prod/db reader {}"}
    assert set_from({"type": "vault", "id": "x", "options": {"version": 2}}) == {"A": "x None {'version': 2}"}


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            f"def fetch(source, role):\n    raise KeyError('{VALUE}')",
            "the secret vault:x could not be fetched: KeyError\n    check the name, the role",
        ),
        ("def fetch(source, role):\n    return ['A']", "came as list"),
        ("def fetch(source, role):\n    return {'A': 5}", "gives a value of A that no variable can have"),
        ("import nothing_there", "the secret manager vault cannot be loaded: ModuleNotFoundError"),
        ("", "the secret manager vault cannot be loaded: AttributeError"),
    ],
)
def test_a_secret_manager_that_fails_is_told_without_the_value(offer: Callable[[str], None], code: str, message: str) -> None:
    offer(code)

    assert message in said("vault:x")


def test_a_secret_manager_that_is_not_installed_is_named() -> None:
    message = said("aws-secrets-manager.prod/db")

    assert "no secret manager aws-secrets-manager is installed here (aws-secrets-manager:prod/db)" in message
    assert "an entry point aws-secrets-manager in the group flowbook.secrets; there are: env, file, inline, kubernetes" in message
    assert "did you mean file?" in said("flie:x")


@given(text=st.text(alphabet="AB=\n '\"#{}:, x\\", max_size=40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_file_makes_it_fail_in_any_other_way(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys").write_text(text)
    try:
        found = set_from(f"file:{tmp_path}/keys")
    except SecretError as error:
        assert "\n    " in str(error)
    else:
        json.dumps(found)
