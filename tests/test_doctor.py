"""`flowbook doctor` and what `%flow doctor` shares with it: checks and their deadlines, versions, the store, rights, the cluster, one pod.

The cluster is a fake one here; tests/cluster/test_doctor.py has the real one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flowbook.cli import main
from flowbook.engine.doctor import machine, rights, trial
from flowbook.engine.doctor.core import Check, Found, examine, summary
from flowbook.engine.doctor.machine import within
from flowbook.engine.doctor.storage import contest
from flowbook.errors import StoreError, StoreFull
from flowbook.store import garbage
from flowbook.store.files import FilesStore
from tests.launchers.fake_cluster import Denied, FakeCluster
from tests.stores.fault_proxy import between
from tests.stores.s3_server import Server, serve

ROOT = Path(__file__).parent.parent


# ---- checks and their deadlines -----------------------------------------------------------------------------------------------


def told(*checks: Check) -> list[str]:
    return [str(found) for found in examine(checks)]


def one(part: str, *found: Found, gate: bool = False) -> Check:
    return Check(part, f"the {part}", lambda: found, gate=gate)


def test_a_check_that_fails_itself_is_a_finding_and_the_next_one_is_made() -> None:
    fails = Check("here", "nothing", lambda: [Found("ok", str(1 / 0))])

    assert told(fails, one("here", Found("warn", "rain", "Take an umbrella."))) == [
        "✗ nothing: the check failed: ZeroDivisionError: division by zero",
        "! rain. Take an umbrella.",
    ]


def test_behind_a_closed_gate_the_rest_of_a_part_is_left_out() -> None:
    bad, fine = Found("bad", "no road"), Found("ok", "a road")

    assert told(one("a", bad, fine, gate=True), one("a", fine), one("b", fine)) == ["✗ no road", "✓ a road", "✓ a road"]
    assert told(one("a", Found("warn", "mud"), gate=True), one("a", fine)) == ["! mud", "✓ a road"]
    assert told(one("a", bad), one("a", fine)) == ["✗ no road", "✓ a road"]


def test_what_a_dead_store_says_is_said_once() -> None:
    def asks_the_store() -> list[Found]:
        raise StoreError("dead")

    assert told(one("store", Found("bad", "dead"), gate=True), Check("engine", "runs", asks_the_store)) == ["✗ dead"]
    assert told(Check("engine", "runs", asks_the_store)) == ["✗ runs: the check failed: StoreError: dead"]


def test_who_does_not_answer_is_named_when_time_is_up_and_what_was_said_before_stays() -> None:
    for_ever = threading.Event()

    def hangs() -> Iterator[Found]:
        yield Found("ok", "begun")
        for_ever.wait()

    found = list(examine([Check("cluster", "the API server", hangs, 0.2), one("here", Found("ok", "next"))]))
    for_ever.set()

    assert [(each.part, each.state, each.text) for each in found] == [
        ("cluster", "ok", "begun"),
        ("cluster", "bad", "the API server: no answer within 0 s"),
        ("here", "ok", "next"),
    ]


def test_an_interrupt_ends_the_checks() -> None:
    def interrupted() -> list[Found]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        told(Check("here", "a", interrupted, None))
    with pytest.raises(KeyboardInterrupt):
        told(Check("here", "a", interrupted, 60))


def test_a_finding_travels_as_json() -> None:
    found = Found("bad", "a", "b", "kind: Role", "cluster")

    assert Found.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert Found("ok", "a").to_json() == {"state": "ok", "text": "a"}
    assert summary([found, Found("ok", "a")], 1.26) == "2 checks in 1.3 s, 1 to look at"


# ---- versions -----------------------------------------------------------------------------------------------------------------


def test_packages_that_lack_or_are_too_old_are_told_with_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    real = machine.importlib.metadata.version

    def version(name: str) -> str:
        if name == "nh3":
            raise machine.importlib.metadata.PackageNotFoundError
        return "1.0" if name == "cloudpickle" else real(name)

    monkeypatch.setattr(machine.importlib.metadata, "version", version)
    first, *wrong = machine.versions()

    assert "Python 3" in first.text and "kubernetes " in first.text and "cloudpickle" not in first.text
    assert [(each.state, each.remedy) for each in wrong] == [("bad", 'pip install "cloudpickle>=3.1"'), ("bad", "pip install nh3")]


@pytest.mark.parametrize(
    ("version", "wanted", "fits"),
    [
        ("3.11.4", ">=3.11,<3.14", True),
        ("3.14.0", ">=3.11,<3.14", False),
        ("3.9", ">=3.11", False),
        ("8", "<8", False),
        ("7.0.0rc1", ">=7", True),
        ("1.4.5", "~=1.4.2", True),
        ("1.5", "~=1.4.2", False),
        ("2.0", "==2.0.*", True),
        ("2.1", "!=2.1.*", False),
        ("2.0.0", "==2", True),
        ("2.1", "> 2.0", True),
        ("unknown", ">=1", False),
        ("1", "", True),
    ],
)
def test_versions_are_compared_by_their_numbers(version: str, wanted: str, fits: bool) -> None:
    assert within(version, wanted) is fits


# ---- the promise of the store -----------------------------------------------------------------------------------------------


class Racy(FilesStore):
    """Looks, then writes: what a store without create-if-absent would do."""

    def create(self, key: str, data: Any) -> bool:
        if self.exists(key):
            return False
        self.put(key, data)
        return True


class Generous(FilesStore):
    def create(self, key: str, data: Any) -> bool:
        return super().create(key, data) or True


class Refusing(FilesStore):
    def create(self, key: str, data: Any) -> bool:
        return False


class Forgetful(FilesStore):
    def create(self, key: str, data: Any) -> bool:
        return super().create(key, b"something else" if key.startswith("probes/") else data)


class Full(FilesStore):
    def create(self, key: str, data: Any) -> bool:
        raise StoreFull(f"cannot write {key}")


def test_the_files_store_keeps_its_promise_and_the_contest_leaves_nothing(tmp_path: Path) -> None:
    assert contest(lambda: FilesStore(tmp_path)) == []
    assert list(FilesStore(tmp_path).list("")) == []


@pytest.mark.parametrize("kind", [Racy, Generous, Refusing, Forgetful])
def test_a_store_that_breaks_its_promise_is_caught(tmp_path: Path, kind: type[FilesStore]) -> None:
    wrong = contest(lambda: kind(tmp_path))

    assert wrong and ("32 writers were told" in wrong[0] or "does not hold what its creator wrote" in wrong[0])
    assert list(FilesStore(tmp_path).list("")) == []


def test_a_store_that_fails_in_the_contest_says_why(tmp_path: Path) -> None:
    with pytest.raises(StoreFull, match="cannot write probes/"):
        contest(lambda: Full(tmp_path))


# ---- rights -------------------------------------------------------------------------------------------------------------------


def test_the_rights_are_those_that_an_administrator_gives() -> None:
    import yaml

    documents = list(yaml.safe_load_all((ROOT / "flowbook/engine/launch/rights.yaml").read_text()))
    role = next(each for each in documents if each["kind"] == "Role" and each["metadata"]["name"] == "flowbook-engine")
    given = {(resource, verb) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}

    assert set(rights.asked(rights.RIGHTS)) == given and all(rule["apiGroups"] == [""] for rule in role["rules"])


@pytest.mark.parametrize(
    ("user", "subject"),
    [
        ("system:serviceaccount:hub:ann", {"kind": "ServiceAccount", "name": "ann", "namespace": "hub"}),
        ('ann "x": y', {"kind": "User", "name": 'ann "x": y', "apiGroup": "rbac.authorization.k8s.io"}),
    ],
)
def test_what_lacks_is_a_role_and_its_binding(user: str, subject: dict[str, str]) -> None:
    import yaml

    lacks = rights.lacking(set(rights.asked()) - {("pods", "create"), ("pods", "delete"), ("pods/log", "get")})
    role, binding = yaml.safe_load_all(rights.role(lacks, "team", user))

    assert role["rules"] == [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["create", "delete"]},
        {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
    ]
    assert role["metadata"] == binding["metadata"] and role["metadata"]["namespace"] == "team"
    assert binding["roleRef"]["name"] == role["metadata"]["name"] and binding["subjects"] == [subject]
    other = next(yaml.safe_load_all(rights.role(lacks[:1], "team", user)))
    assert other["metadata"]["name"] != role["metadata"]["name"]  # to apply it later takes nothing away


def test_the_rights_are_printed_for_kubectl_where_nothing_is_set_up(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    assert main(["doctor", "--rights"]) == 0

    assert capsys.readouterr().out == (ROOT / "flowbook/engine/launch/rights.yaml").read_text() and list(home.iterdir()) == []


# ---- the command --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("s3") / "buckets") as found:
        found.bucket("tests")
        yield found


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which nothing is set up, and a terminal of 80 columns."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "FLOWBOOK_", "KUBE"))]:
        monkeypatch.delenv(name)
    given = {"HOME": tmp_path, "XDG_CONFIG_HOME": tmp_path / "config", "XDG_CACHE_HOME": tmp_path / "cache", "COLUMNS": "80"}
    for name, value in given.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("FLOWBOOK_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Doctored:
    """A fake cluster that answers what doctor asks; `allowed` are the rights of who asks, `accounts` the service accounts."""

    def __init__(self, fake: FakeCluster) -> None:
        self.fake, self.allowed, self.accounts = fake, set(rights.asked()), {"steps"}
        self.roles: dict[str, str] = {}  # of accounts
        self.nodes: list[Any] | None = None  # None: they may not be listed
        fake.answers = self.answer

    def answer(self, method: str, path: str, body: Any) -> Any:
        if path == "/api/v1/nodes":
            if self.nodes is None:
                raise Denied(403, "Forbidden", "nodes is forbidden")
            return {"items": self.nodes}
        if path == "/version":
            return {"gitVersion": "v1.34.2"}
        if path.endswith("/selfsubjectreviews"):
            return {"status": {"userInfo": {"username": "system:serviceaccount:team:ann"}}}
        if path.endswith("/selfsubjectaccessreviews"):
            about = body["spec"]["resourceAttributes"]
            resource = "/".join(filter(None, [about["resource"], about["subresource"]]))
            return {"status": {"allowed": about["namespace"] == "team" and (resource, about["verb"]) in self.allowed}}
        if found := re.fullmatch(r"/api/v1/namespaces/team/(secrets|serviceaccounts)/(.+)", path):
            kind, name = found.groups()
            if kind == "secrets" and ("secrets", "get") not in self.allowed:
                raise Denied(403, "Forbidden", "you may not see it")
            if name not in (self.fake.secrets if kind == "secrets" else self.accounts):
                raise Denied(404, "NotFound", f'{kind} "{name}" not found')
            notes = {"eks.amazonaws.com/role-arn": self.roles[name]} if name in self.roles else {}
            return {"metadata": {"name": name, "annotations": notes}, "data": dict.fromkeys(self.fake.secrets.get(name, ()), "x")}
        return None


@pytest.fixture
def doctored(server: Server, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Doctored]:
    """A store in a bucket, and a cluster whose Secret has its credentials."""
    folder = home / "node"
    folder.mkdir()
    fake = FakeCluster(folder)
    fake.secrets["store"] = {name: value for name, value in server.environment.items() if name.startswith("AWS_")}
    given = {
        "FLOWBOOK_STORE": f"s3://tests/{uuid.uuid4().hex}",
        "FLOWBOOK_KUBERNETES_SECRET": "store",
        "KUBECONFIG": str(fake.kubeconfig),
    }
    for name, value in (server.environment | given).items():
        monkeypatch.setenv(name, value)
    yield Doctored(fake)
    fake.close()


def doctor(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """The exit code, and what stands on stdout, in one line for each finding."""
    code = main(["doctor", *words])
    shown = capsys.readouterr()
    assert "Traceback" not in shown.out + shown.err
    return code, re.sub(r"\n +", " ", shown.out)


def test_a_machine_without_cluster_is_told_that_all_is_well(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    code, text = doctor(capsys)

    assert code == 0 and text.endswith("all is well\n") and "✗" not in text and "!" not in text, text
    for part in ("flowbook ", "Python 3", "32 writers at once, 50 keys", "hard links work", "no killed engine", "steps run here"):
        assert part in text
    assert list((home / "store/default/probes").iterdir()) == []


def test_a_cluster_that_has_all_is_told_so_and_each_line_fits(doctored: Doctored, capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor"])
    text = capsys.readouterr().out

    assert text.endswith("all is well\n"), text
    long = [line for line in text.splitlines() if len(line) > 80 and len(line.split()) > 1 and " " in line[2:].strip()]
    assert long == []
    for part in ("cluster http://127.0.0.1", "namespace team", "v1.34.2", "all 5 rights", "a pod would be taken", "cannot be seen"):
        assert part in re.sub(r"\n +", " ", text)
    assert doctored.fake.names() == []


@pytest.mark.parametrize("lacks", [{("pods", "create")}, {("pods", "watch"), ("secrets", "create")}], ids=["create", "watch and secrets"])
def test_rights_that_lack_are_named_with_the_role_to_apply(
    doctored: Doctored, capsys: pytest.CaptureFixture[str], lacks: set[tuple[str, str]]
) -> None:
    import yaml

    doctored.allowed -= lacks
    code = main(["doctor"])
    text = capsys.readouterr().out
    role, binding = yaml.safe_load_all(text[text.index("apiVersion:") : text.index("]\n\n") if "]\n\n" in text else text.rindex("}\n") + 2])

    assert code == 1
    assert {(rule["resources"][0], verb) for rule in role["rules"] for verb in rule["verbs"]} == lacks
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "ann", "namespace": "team"}]
    for resource, verb in lacks:
        assert f"may not {verb} {resource} in namespace team" in re.sub(r"\n +", " ", text)


def test_what_one_can_do_without_is_no_error(doctored: Doctored, capsys: pytest.CaptureFixture[str]) -> None:
    doctored.allowed -= {("pods/portforward", "create"), ("configmaps", "create")}
    code, text = doctor(capsys)

    assert code == 0 and "! system:serviceaccount:team:ann may not create pods/portforward" in text, text
    assert "✓ without rights on configmaps (create), which are optional" in text


def test_an_account_without_any_right_is_told_of_its_namespace(
    doctored: Doctored, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWBOOK_KUBERNETES_NAMESPACE", "nowhere")
    code, text = doctor(capsys)

    assert code == 1 and "✗ the cluster has no namespace nowhere" in text and text.count("may not") == 0, text
    assert "namespace: nowhere" in text


def test_secrets_and_accounts_that_pods_need_are_looked_for(
    doctored: Doctored, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWBOOK_KUBERNETES_SERVICE_ACCOUNT", "steps")
    assert "✓ whether the Secret store is in namespace team cannot be seen" in doctor(capsys)[1]

    doctored.allowed |= {("secrets", "get")}
    code, text = doctor(capsys)
    assert code == 0 and "✓ service account steps" in text and "✓ Secret store in namespace team, with AWS_ACCESS_KEY_ID" in text, text
    assert doctored.fake.secrets["store"]["AWS_SECRET_ACCESS_KEY"] not in text

    del doctored.fake.secrets["store"]["AWS_SECRET_ACCESS_KEY"]
    assert "✗ the Secret store has AWS_ACCESS_KEY_ID without AWS_SECRET_ACCESS_KEY" in doctor(capsys)[1]

    doctored.fake.secrets.clear()
    code, text = doctor(capsys)
    assert code == 1 and "✗ there is no Secret store in namespace team" in text and "kubectl create secret generic store -n team" in text

    monkeypatch.delenv("FLOWBOOK_KUBERNETES_SECRET")
    monkeypatch.delenv("FLOWBOOK_KUBERNETES_SERVICE_ACCOUNT")
    code, text = doctor(capsys)
    assert code == 1 and "✗ pods get no credentials for the store" in text, text
    assert "kubectl create secret generic flowbook-store -n team" in text and "FLOWBOOK_KUBERNETES_SECRET=flowbook-store" in text

    doctored.accounts |= {"default"}
    assert "✗ pods get no credentials" in doctor(capsys)[1]
    doctored.roles["default"] = "arn:aws:iam::1:role/steps"
    code, text = doctor(capsys)
    assert code == 0 and "✓ service account default, with the role arn:aws:iam::1:role/steps" in text, text


GPU = "karpenter.k8s.aws/instance-gpu-name"


def node(labels: dict[str, str], **amounts: str) -> dict[str, Any]:
    has = {"cpu": "8", "memory": "32Gi", **{name.replace("gpu", "nvidia.com/gpu"): value for name, value in amounts.items()}}
    return {"metadata": {"name": "node-1", "labels": labels}, "status": {"allocatable": has}}


@pytest.mark.parametrize(
    ("nodes", "words", "said"),
    [
        (
            None,
            ["resources:gpu=1"],
            "! whether a node is there for cpu 1, memory 4096M, gpu 1; instance-gpu-name l4 or l40s cannot be seen",
        ),
        (None, ["kubernetes:node_selector=disk=fast"], "! whether a node is there for"),
        (None, ["kubernetes:image=team/train:7"], "all is well"),
        ([node({})], ["resources:gpu=1"], "! none of the cluster's nodes (1) has the labels and the size for a pod of cpu 1"),
        ([node({GPU: "l4"})], ["resources:gpu=1"], "! none of the cluster's nodes (1) has"),
        ([node({GPU: "a100"}, gpu="4")], ["resources:gpu=1"], "! none of the cluster's nodes (1) has"),
        ([node({GPU: "l4"}, gpu="1"), node({})], ["resources:gpu=1"], "✓ 1 of 2 nodes could take a pod of cpu 1"),
        ([node({}, cpu="7900m")], ["resources:cpu=8"], "! none of the cluster's nodes (1) has"),
        ([node({}, memory="3900000Ki")], ["resources:memory=4000"], "! none of the cluster's nodes (1) has"),
        ([node({"disk": "fast"})], ["kubernetes:node_selector=disk=fast"], "✓ 1 of 1 node could take"),
        ([node({"disk": "slow"})], ["kubernetes:node_selector=disk=fast"], "! none of the cluster's nodes (1) has"),
        ([node({})], ["kubernetes:image=team/train:7"], "✓ 1 of 1 node could take"),
    ],
)
def test_whether_a_node_is_there_is_looked_at_where_nodes_may_be_listed(
    doctored: Doctored, capsys: pytest.CaptureFixture[str], nodes: list[Any] | None, words: list[str], said: str
) -> None:
    doctored.nodes = nodes
    code, text = doctor(capsys, *(part for word in words for part in ("--with", word)))

    assert code == 0 and said in text, text
    assert ("all is well" in text) == ("!" not in said), text


def test_a_pod_is_tried_and_nothing_is_left_of_it(doctored: Doctored, capsys: pytest.CaptureFixture[str], server: Server) -> None:
    code, text = doctor(capsys, "--pod")

    assert code == 0 and "✓ a pod started from the image python:" in text, text
    assert f"✓ the pod, with Python {sys.version.split()[0]}, read from the store and wrote to it, and is removed" in text
    assert doctored.fake.names() == [] and len({pod["metadata"]["name"] for _, _, pod in doctored.fake.events}) == 1
    folder = server.folder / os.environ["FLOWBOOK_STORE"].removeprefix("s3://")
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["store.json"]


def test_gc_removes_what_a_killed_doctor_left_of_its_pod(tmp_path: Path) -> None:
    store = FilesStore(tmp_path / "project")
    store.create("flows/demo/1/run.json", b"{}")
    left = trial._store(SimpleNamespace(store=store, name="12-ab"))  # type: ignore[arg-type]
    inner = left.__enter__()
    inner.create("flows/doctor/1/run.json", b"{}")
    inner.put_blob([b"a runtime"])
    assert any(name.startswith("probes/") for name in store.list(""))
    old = time.time() - 3 * 24 * 3600
    for path in (store.root / "probes").rglob("*"):
        os.utime(path, (old, old))
    garbage.collect(store)

    assert list(store.list("")) == ["flows/demo/1/run.json"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"FLOWBOOK_KUBERNETES_IMAGE": "missing/image:1"}, "there is no image missing/image:1"),
        ({"FLOWBOOK_KUBERNETES_IMAGE": "private/image:1"}, "may not be pulled: 401 Unauthorized"),
        ({"FLOWBOOK_KUBERNETES_SECRET": "absent"}, "the pod needs the secret 'absent', which its namespace has not"),
        ({"FLOWBOOK_KUBERNETES_SECRET": ""}, "this pod has no credentials for the store"),
        ({"secret": "wrong"}, "correct the Secret store (kubernetes_secret)"),
    ],
    ids=["no image", "private image", "no secret", "no credentials", "wrong credentials"],
)
def test_a_pod_that_fails_says_why_and_is_removed(
    doctored: Doctored, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, change: dict[str, str], said: str
) -> None:
    if wrong := change.pop("secret", None):
        doctored.fake.secrets["store"]["AWS_SECRET_ACCESS_KEY"] = wrong
    for name, value in change.items():
        monkeypatch.setenv(name, value)
    code, text = doctor(capsys, "--pod")

    assert code == 1 and "✗ the pod failed: " in text and said in text.partition("✗ the pod failed: ")[2], text
    ours = "FLOWBOOK_KUBERNETES_IMAGE" in change
    assert ("`--with kubernetes:image=…` tries another here" in text) == ours, text
    assert doctored.fake.names() == []


def test_the_image_is_named_on_the_command_line_and_what_keeps_it_is_told_while_the_pod_waits(
    doctored: Doctored, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWBOOK_KUBERNETES_IMAGE", "another/image:1")
    code = main(["doctor", "--pod", "--with", "kubernetes:image=missing/image:1"])
    shown = capsys.readouterr()

    assert code == 1 and "there is no image missing/image:1" in re.sub(r"\n +", " ", shown.out), shown
    assert re.search(r"… the pod is \w+: there is no image missing/image:1", shown.err), shown.err


def test_another_python_in_the_image_is_told(
    doctored: Doctored, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = "3.12.9" if sys.version_info[:2] != (3, 12) else "3.13.9"
    monkeypatch.setattr(sys, "version", f"{other} {sys.version.partition(' ')[2]}")
    monkeypatch.setenv("FLOWBOOK_KUBERNETES_IMAGE", "team/image:1")
    code, text = doctor(capsys, "--pod")

    assert code == 0 and "! the image has Python 3." in text and f"the run was started with {other}" in text, text


def test_resources_that_no_node_has_are_told_when_the_wait_is_over(
    doctored: Doctored, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWBOOK_KUBERNETES_PENDING", "1s")
    code, text = doctor(capsys, "--pod", "--with", "kubernetes:cpu=900")

    assert code == 1 and "no node for cpu 900" in text and "Insufficient cpu" in text, text
    assert doctored.fake.names() == []


@pytest.mark.parametrize(
    ("number", "code", "word", "background"),
    [(signal.SIGINT, 130, "interrupted", False), (signal.SIGTERM, 143, "SIGTERM", False), (signal.SIGTERM, 143, "SIGTERM", True)],
    ids=["Ctrl-C", "SIGTERM", "SIGTERM to a shell's background job"],
)
def test_an_end_by_a_signal_takes_the_pod_away(
    doctored: Doctored, home: Path, number: signal.Signals, code: int, word: str, background: bool
) -> None:
    command = [sys.executable, "-m", "flowbook", "doctor", "--pod", "--with", "kubernetes:cpu=900"]
    if background:  # SIGINT is ignored then
        command = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", *command]
    with subprocess.Popen(command, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "no node for cpu 900" in line:
                break
        assert len(doctored.fake.names()) == 1
        process.send_signal(number)
        out, err = process.communicate(timeout=120)

    assert process.returncode == code and "Traceback" not in out + err, out + err
    assert f"{word}; the pod that was tried is removed" in err and "nothing was started" not in err, err
    assert doctored.fake.names() == []


def test_sigterm_before_any_pod_says_that_nothing_was_started(doctored: Doctored, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("FLOWBOOK_S3_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        command = [sys.executable, "-m", "flowbook", "doctor", "--pod"]
        with subprocess.Popen(command, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stdout.readline()
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=120)

    assert process.returncode == 143 and err.endswith("SIGTERM; nothing was started\n"), out + err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--with", "kubernetes:namespace=Team_A"], "✗ namespace 'Team_A' is no name in Kubernetes"),
        (["--with", "kubernetes:image=a b"], "✗ 'a b' is no name of an image"),
        (["--with", "resources:gpu=99"], "✗ one task asks for 99 GPUs, and a run may have 16"),
    ],
)
def test_what_cannot_be_is_told_before_the_cluster_is_asked(
    doctored: Doctored, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    code, text = doctor(capsys, *words)

    assert code == 1 and said in text and doctored.fake.requests == [], text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--with", "retry:times=2"], "--with retry says nothing of a pod"),
        (["--with", "kubernetez"], "unknown decorator 'kubernetez'"),
        (["--pots"], "there is no option --pots"),
        (["--with", "kubernetes:image"], "is not of the form NAME=VALUE"),
    ],
)
def test_wrong_usage_is_told_with_its_exit_code(capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    assert main(["doctor", *words]) == 2
    assert said in capsys.readouterr().err


def test_findings_as_json_are_a_line_each(doctored: Doctored, capsys: pytest.CaptureFixture[str]) -> None:
    doctored.allowed -= {("pods", "create")}
    assert main(["doctor", "--json"]) == 1
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    assert {each["state"] for each in found} == {"ok", "bad"} and {each["part"] for each in found} == {"here", "store", "engine", "cluster"}
    assert [each["paste"].splitlines()[1] for each in found if "paste" in each] == ["kind: Role"]


def test_quiet_shows_only_what_is_to_look_at(doctored: Doctored, capsys: pytest.CaptureFixture[str]) -> None:
    doctored.allowed -= {("events", "get")}
    code, text = doctor(capsys, "--quiet")

    assert code == 0 and "✓" not in text and "! system:serviceaccount:team:ann may not get events" in text


# ---- what is not there, or does not answer -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [False, True])
def test_pods_cannot_use_a_folder_as_store(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, asked: bool) -> None:
    monkeypatch.setenv("FLOWBOOK_KUBERNETES_NAMESPACE", "team")
    code, text = doctor(capsys, *["--pod"] * asked)

    assert code == int(asked) and "the store is a folder of this machine, which pods do not reach" in text
    assert ("✗ no cluster is set up here" if asked else "! kubernetes_namespace set, but the store is a folder") in text


def test_a_store_in_a_bucket_needs_no_cluster_unless_one_is_asked_for(
    doctored: Doctored, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    monkeypatch.delenv("KUBECONFIG")
    monkeypatch.delenv("FLOWBOOK_KUBERNETES_SECRET")
    code, text = doctor(capsys)
    assert code == 0 and "✓ no cluster is set up here (no kubeconfig, no kubernetes_… setting)" in text, text

    code, text = doctor(capsys, "--pod")
    assert code == 1 and "✗ no cluster is set up here" in text and "~/.kube/config" in text, text

    with monkeypatch.context() as patch:  # a pod without a token, as those of steps are
        patch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
        assert "✓ no cluster is set up here" in doctor(capsys)[1]

    (home / ".kube").mkdir()
    shutil.copy(doctored.fake.kubeconfig, home / ".kube/config")
    assert "✓ cluster http://127.0.0.1" in doctor(capsys)[1]


def test_a_context_that_is_not_there_is_named_with_those_that_are(
    doctored: Doctored, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWBOOK_KUBERNETES_CONTEXT", "fak")
    code, text = doctor(capsys)

    assert code == 1 and "has no context 'fak': correct kubernetes_context. Contexts there: fake" in text, text


@pytest.mark.parametrize("text", ["", "{", "a: [1, 2", "clusters: 7"])
def test_a_kubeconfig_that_is_none_is_told(doctored: Doctored, capsys: pytest.CaptureFixture[str], text: str) -> None:
    Path(os.environ["KUBECONFIG"]).write_text(text)
    code, said = doctor(capsys)

    assert code == 1 and os.environ["KUBECONFIG"] in said.partition("✗ ")[2], said


def test_an_account_that_the_cluster_does_not_know_is_told(doctored: Doctored, capsys: pytest.CaptureFixture[str]) -> None:
    config = Path(os.environ["KUBECONFIG"])
    config.write_text(config.read_text().replace("secret-token", "expired"))
    code, text = doctor(capsys)

    assert code == 1 and "✗ the cluster does not know this account (401)" in text and "Log in again" in text, text


@pytest.mark.parametrize("silent", [False, True], ids=["nothing listens", "nothing is answered"])
def test_an_api_server_that_does_not_answer_is_named_soon(
    doctored: Doctored, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, silent: bool
) -> None:
    from flowbook.engine.doctor import cluster

    monkeypatch.setattr(cluster, "ANSWER_S", 0.5)
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        if silent:
            door.listen(50)
        config = Path(os.environ["KUBECONFIG"])
        config.write_text(re.sub(r"127\.0\.0\.1:\d+", f"127.0.0.1:{door.getsockname()[1]}", config.read_text()))
        code, text = doctor(capsys)

    assert code == 1 and f"✗ the cluster http://127.0.0.1:{door_of(config)} does not answer" in text, text
    assert "look at its address in the kubeconfig" in text and "all 5 rights" not in text


def door_of(config: Path) -> str:
    found = re.search(r"127\.0\.0\.1:(\d+)", config.read_text())
    assert found
    return found[1]


@pytest.mark.parametrize("silent", [False, True], ids=["nothing listens", "nothing is answered"])
def test_an_s3_server_that_does_not_answer_is_named_soon_and_the_cluster_is_looked_at_all_the_same(
    doctored: Doctored, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, silent: bool
) -> None:
    from flowbook.store import s3_client

    monkeypatch.setattr(s3_client, "READ_S", 0.3)
    monkeypatch.setattr(s3_client, "FIRST_DEADLINE_S", 0.5)
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        if silent:
            door.listen(50)
        monkeypatch.setenv("FLOWBOOK_S3_ENDPOINT", f"http://127.0.0.1:{door.getsockname()[1]}")
        code, text = doctor(capsys)

    assert code == 1 and "cannot be reached" in text and text.count("✗") == 1, text
    assert "create-if-absent" not in text and "✓ all 5 rights" in text


# ---- buckets that are none, or do not keep the promise -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"FLOWBOOK_STORE": "s3://nowhere/x"}, "there is no bucket 'nowhere'"),
        ({"AWS_ACCESS_KEY_ID": "wrong"}, "does not know the credentials of the environment"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "does not know the credentials of the environment"),
        ({"AWS_SECRET_ACCESS_KEY": ""}, "AWS_SECRET_ACCESS_KEY is not set"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_EC2_METADATA_DISABLED": "true"}, "no credentials for S3"),
        ({"FLOWBOOK_S3_REGION": "eu-west-9"}, "is not in the region 'eu-west-9'"),
    ],
    ids=["no bucket", "wrong key", "wrong secret", "half credentials", "no credentials", "wrong region"],
)
def test_a_bucket_that_cannot_be_used_is_told_in_one_piece(
    doctored: Doctored, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, change: dict[str, str], said: str
) -> None:
    for name, value in change.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    code, text = doctor(capsys)

    assert code == 1 and said in text and "create-if-absent" not in text and text.count("✗") == 1, text
    assert "not-a-secret-of-anybody" not in text


FAULTS: dict[str, tuple[Any, str]] = {
    "expired": (lambda method, path, headers: (400, "ExpiredToken"), "have ended (ExpiredToken). Get new ones"),
    "refuses conditions": (
        lambda method, path, headers: (501, "NotImplemented") if "if-none-match" in headers else None,
        "does not keep `If-None-Match: *` (it answers NotImplemented)",
    ),
    "passes over conditions": (
        lambda method, path, headers: "unconditional" if "if-none-match" in headers else None,
        "takes such a request and overwrites what is there",
    ),
    "racy": (
        lambda method, path, headers: "racy" if "if-none-match" in headers and "/probes/" in path else None,
        "create-if-absent is not kept:",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_breaks_the_promise_or_ends_credentials_is_found_out(
    doctored: Doctored, server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    with between(server.endpoint) as proxy:
        proxy.fault, said = FAULTS[fault]
        monkeypatch.setenv("FLOWBOOK_S3_ENDPOINT", proxy.endpoint)
        code, text = doctor(capsys)

    assert code == 1 and said in text and "no object" not in text, text
    if fault == "racy":
        assert "of 32 writers were told that they had created one key (50 of 50 keys)" in text, text
        assert "Results could be lost" in text


# ---- in a kernel ------------------------------------------------------------------------------------------------------------------


def test_a_kernel_asks_the_cluster_in_a_process_of_its_own(doctored: Doctored, home: Path) -> None:
    code = """
import sys
from IPython.testing.globalipapp import start_ipython
shell = start_ipython()
shell.run_line_magic("load_ext", "flowbook")
shell.run_cell("%flow doctor --pod").raise_error()
print("LOADED", sorted({"boto3", "botocore", "kubernetes"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=home, env=dict(os.environ), check=False)

    assert done.returncode == 0 and "LOADED []" in done.stdout, done.stdout + done.stderr
    assert "✓ all 5 rights that flowbook uses in namespace team" in done.stdout
    assert "read from the store and wrote to it" in done.stdout and "all is well" in done.stdout
    assert doctored.fake.names() == []


# ---- a run, before there is one ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("secret-token", "expired", "the cluster does not know this account (401)"),
        ('"name": "fake", "context"', '"name": "other", "context"', "no cluster is set up here"),
        (r"http://127.0.0.1:\d+", "http://127.0.0.1:1", "the cluster http://127.0.0.1:1 does not answer"),
    ],
    ids=["expired", "no context", "unreachable"],
)
def test_a_run_is_not_begun_without_a_cluster_that_answers(doctored: Doctored, home: Path, old: str, new: str, said: str) -> None:
    config = Path(os.environ["KUBECONFIG"])
    config.write_text(re.sub(old, new, config.read_text()))
    (home / "flow.py").write_bytes((ROOT / "tests/seed/foreach_flow.py").read_bytes())
    (home / "training.py").write_bytes((ROOT / "tests/seed/training.py").read_bytes())
    command = [sys.executable, "flow.py", "--with", "kubernetes", "run"]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, check=False)

    assert done.returncode == 3 and said in done.stderr, done.stdout + done.stderr
    assert "Nothing was run. `flowbook doctor` looks closer" in done.stderr and "Traceback" not in done.stderr
    assert main(["runs", "ForeachFlow"]) == 2  # there is no such flow: nothing was begun
