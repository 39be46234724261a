"""From a notebook to the cluster and back: `--with kubernetes` in JupyterLab in Chromium, in nbclient, on the command line.

The quickstart is the one that everybody gets; only its line `%flow run` says `--with kubernetes`. Asks are scaled to the node by the setting
`kubernetes_scale`. The bucket is a real one, so what the kernel reads by name comes from there.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell

from flowbook.engine.launch import podspec
from flowbook.kernel import panel
from tests.browser.conftest import chromium, pictures  # noqa: F401 (fixtures)
from tests.browser.lab import ARGUMENTS, DARK, LIGHT, Lab, Server
from tests.browser.test_lab import write
from tests.browser.test_quickstart import QUICKSTART, number
from tests.cluster.cluster import S3, Cluster, Namespace
from tests.cluster.images import CannotMakeImage
from tests.cluster.stages import credentials, environ_of, eventually, here, make_secret
from tests.conftest import end_processes_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]
SEED = ROOT / "tests" / "seed"
PANEL = pytest.mark.skipif(
    not panel._built() and os.environ.get("FLOWBOOK_BROWSER_TESTS") != "required",
    reason="the panel is not built here (.ci/frontend): NO NODE? Its tests did not run",
)
SCALE = "0.25"  # a quarter of 1 GB holds scikit-learn

LAZY = """
names = ["rest_images", "train_images", "champion", "test_accuracy", "best_reader"]
print("not here yet:", [name for name in names if type(get_ipython().user_ns[name]).__name__ == "Placeholder"])
"""


@pytest.fixture(scope="module")
def science(cluster: Cluster) -> str:
    """The image with scikit-learn."""
    if cluster.home is None:
        pytest.skip("an image is only put onto a node of our own")
    try:
        return cluster.science_image()
    except CannotMakeImage as error:
        pytest.skip(f"no image with scikit-learn: {error}")


@pytest.fixture
def told(namespace: Namespace, bucket: S3, science: str) -> Iterator[dict[str, str]]:
    """The settings of somebody who sends a notebook to this cluster."""
    make_secret(namespace, "store", credentials(bucket))
    settings = environ_of(bucket, science, FLOWBOOK_KUBERNETES_SCALE=SCALE)
    yield settings
    end_processes_of(settings["FLOWBOOK_STORE"])


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Any]:  # noqa: F811
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:  # keeps an event loop in the main thread, which later modules must not find
        started = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture
def lab(told: dict[str, str], namespace: Namespace, browser: Any, pictures: Path, tmp_path: Path) -> Iterator[Lab]:  # noqa: F811
    server = Server(tmp_path / "lab", environ={"KUBECONFIG": str(namespace.kubeconfig("engine")), **told})
    page = Lab(server, browser, pictures)
    yield page
    page.close()
    server.close()


def sent_to_the_cluster(folder: Path) -> Path:
    """The quickstart as a user changes it, with a look at what is not loaded at its end."""
    notebook = nbformat.read(QUICKSTART, as_version=4)
    [run] = [cell for cell in notebook.cells if cell.source == "%flow run"]
    run.source = "%flow run --with kubernetes"
    notebook.cells.append(new_code_cell(LAZY))
    folder.mkdir()
    nbformat.write(notebook, folder / QUICKSTART.name)
    return folder / QUICKSTART.name


@PANEL
def test_the_quickstart_runs_in_pods_from_jupyterlab_and_its_results_are_read_from_s3(lab: Lab, tmp_path: Path) -> None:
    lab.open(sent_to_the_cluster(tmp_path / "own"))
    lab.run_all()
    lab.page.wait_for_selector(".fbp-legend >> text=pulling", timeout=120_000)
    lab.page.wait_for_selector(".fbp-row[data-task^='train'] .fbp-importing, .fbp-row[data-task^='train'] .fbp-starting", timeout=300_000)
    for name, theme in (("light", LIGHT), ("dark", DARK)):
        lab.theme(theme)
        lab.picture(f"cluster-running-{name}", whole=True)
    lab.wait_for_cells(1_500)

    errors = [output for cell in lab.cells() for output in cell.get("outputs", []) if output["output_type"] == "error"]
    assert errors == [], lab.story()
    assert "test accuracy 9" in lab.output(number(lab, 'print(f"best setting')), lab.story()
    assert "9 trainings in 9 processes, none of them this notebook's: True" in lab.output(number(lab, 'print(f"best setting'))
    assert lab.cell(number(lab, "import matplotlib")).locator("img").count() == 1
    assert "not here yet: ['rest_images', 'train_images', 'champion']" in lab.output(number(lab, "names ="))
    assert lab.page.locator(".fbp-row[data-task^='train'] .fbp-fill-succeeded").count() == 9
    scaled = f"pods get {SCALE} of the cpu, memory and disk asked for (kubernetes_scale)"
    assert f"load, prepare, train, …: {scaled}" in lab.page.locator(".fbp-notes").inner_text(), "never in silence"
    lab.picture("cluster-ended", whole=True)
    run = number(lab, "%flow run")
    kept = "\n".join(str(output.get("data", {}).get("text/html", "")) for output in lab.cells()[run]["outputs"])
    assert scaled in kept
    assert re.search(r"at most queued .*, importing", kept), "the copy that stays tells of the phases, too"
    assert lab.errors == []


def test_the_quickstart_runs_in_pods_from_nbclient(told: dict[str, str], namespace: Namespace, tmp_path: Path) -> None:
    notebook = sent_to_the_cluster(tmp_path / "own")
    command = [sys.executable, str(ROOT / "notebooks" / "execute.py"), str(notebook), "--out", str(tmp_path / "out"), "--timeout", "1500"]
    done = subprocess.run(command, env=here(namespace, tmp_path, told), capture_output=True, text=True, check=False, timeout=1_700)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "test accuracy 9" in done.stdout and "not here yet: ['rest_images', 'train_images', 'champion']" in done.stdout, done.stdout


CARD = """
import itertools, os, time
from flowbook import FlowSpec, step, resources, card
from flowbook.cards import Markdown, Table

class CardFlow(FlowSpec):
    @step
    def start(self):
        self.next(self.train)

    @card(type="blank", refresh_interval=5)
    @resources(gpu=1)
    @step
    def train(self):
        from flowbook import current
        for epoch in itertools.count():
            loss = 1 / (epoch + 1)
            current.card.clear()
            current.card.append(Markdown(f"## Epoch {epoch}/many"))
            current.card.append(Table([["Loss", f"{loss:.4f}"]]))
            current.card.refresh()
            if os.path.exists("/tmp/enough"):
                break
            time.sleep(0.2)
        self.epochs = epoch
        self.next(self.end)

    @step
    def end(self):
        pass
"""
MOVES = """() => new Promise(done => {
    const seen = [], card = document.querySelector('.fbp-card');
    const look = () => {
        const epoch = Number(/Epoch (\\d+)/.exec(card.innerText)?.[1] ?? -1);
        if (epoch !== seen.at(-1)) seen.push(epoch);
        if (seen.length > 8) { watch.disconnect(); done(seen); }
    };
    const watch = new MutationObserver(look);
    watch.observe(card, {subtree: true, childList: true, characterData: true});
})"""


@PANEL
def test_the_seeds_card_moves_while_its_pod_runs_and_stays(lab: Lab, cluster: Cluster, namespace: Namespace, tmp_path: Path) -> None:
    with cluster.fitted(gpus=1, labels={podspec.GPU_NAME: "l4"}):
        lab.open(write(tmp_path / "card.ipynb", "%load_ext flowbook", CARD, "%flow run CardFlow --with kubernetes"))
        lab.run_all()
        page = lab.page
        page.wait_for_selector(".fbp-card h2:has-text('Epoch')", timeout=240_000)
        epochs = page.evaluate(MOVES)
        gaps = sorted(later - before for before, later in pairwise(epochs))
        assert gaps[0] > 0 and gaps[len(gaps) // 2] <= 10, f"{epochs}: as it is stored it would move once in 25"
        lab.picture("cluster-card", whole=True)

        pod = eventually(lambda: [one for one in pods(namespace) if "-train-" in one], "the pod")[0]
        namespace.kube.run("exec", pod, "--", "touch", "/tmp/enough")
        page.wait_for_selector(".fbp-word.fbp-is-succeeded", timeout=240_000)
    page.locator(".fbp-row[data-task='train']").click()
    last = page.locator(".fbp-card h2").inner_text()
    assert int(last.split()[1].partition("/")[0]) >= epochs[-1]
    lab.picture("cluster-card-after", whole=True)
    assert lab.errors == []


def pods(namespace: Namespace) -> list[str]:
    return [pod["metadata"]["name"] for pod in namespace.kube.get("pods")["items"]]


DIES = """
import os, signal
from flowbook import current

epochs_trained = 0

def train_one_epoch():
    global epochs_trained
    if epochs_trained == 45 and not current.retry_count:
        os.kill(os.getpid(), signal.SIGKILL)
    epochs_trained += 1
    print(f"epoch {epochs_trained} of attempt {current.retry_count + 1}", flush=True)
"""


@pytest.mark.parametrize(
    ("flow", "training", "says"),
    [
        ("train_flow", None, "Training complete. Accuracy: 0.991"),
        ("card_flow", None, "CardFlow"),
        ("checkpoint_flow", DIES, "epoch 50 of attempt 2"),
    ],
    ids=["train", "card", "checkpoint"],
)
def test_the_seeds_flows_run_in_pods_from_the_command_line(
    flow: str, training: str | None, says: str, told: dict[str, str], cluster: Cluster, namespace: Namespace, tmp_path: Path
) -> None:
    (tmp_path / f"{flow}.py").write_bytes((SEED / f"{flow}.py").read_bytes())
    (tmp_path / "training.py").write_text(training or (SEED / "training.py").read_text())
    environ = here(namespace, tmp_path, {**told, "FLOWBOOK_KUBERNETES_IMAGE": cluster.image, "FLOWBOOK_KUBERNETES_SCALE": "0.02"})
    command = [sys.executable, f"{flow}.py", "--with", "kubernetes", "run"]
    with cluster.fitted(gpus=1, labels={podspec.GPU_NAME: "l4"}):
        done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False, timeout=1_500)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "epoch 1 of attempt 2" not in done.stdout, "it went on from its checkpoint in the bucket"
    assert says in done.stdout and "kubernetes_scale" in done.stdout + done.stderr, done.stdout + done.stderr
