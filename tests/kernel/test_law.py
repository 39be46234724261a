"""The law: a step cell is a cell. Random small notebooks, read plainly by `exec` and run as a flow, compute the same."""

from __future__ import annotations

import random
import types
from dataclasses import dataclass, field

import pytest

from tests.kernel.conftest import Notebook

EXAMPLES = 10


@dataclass
class Book:
    """A random notebook: its cells for the kernel, and the same as one plain program."""

    flow: str
    rng: random.Random
    cells: list[str] = field(default_factory=list)
    plain: list[str] = field(default_factory=list)
    ints: list[str] = field(default_factory=list)  # names that are bound for certain outside any fan-out
    lists: list[str] = field(default_factory=list)
    made: int = 0

    def new(self) -> str:
        self.made += 1
        return f"{self.flow}_v{self.made}"

    def number(self) -> str:
        r = self.rng
        atom = r.choice([*self.ints, str(r.randint(-3, 9))]) if self.ints else str(r.randint(-3, 9))
        return r.choice([atom, f"({atom} + {r.randint(1, 5)})", f"({atom} * {r.randint(2, 3)})", f"{self.flow}_twice({atom})"])

    def step(self, body: list[str], options: str = "") -> str:
        name = f"{self.flow}_s{len(self.cells)}"
        self.cells.append(f"%%flowstep {name} --flow {self.flow} {options}\n" + "\n".join(body))
        return name

    def assigning(self) -> None:
        name = self.new()
        body = [f"{name} = {self.number()}", f"for _ in range({self.rng.randint(0, 3)}):", f"    {name} += {self.number()}"]
        self.step(body)
        self.plain += body
        self.ints.append(name)

    def branching(self) -> None:
        """A name that may be changed: by a branch of the body or by --when."""
        if not self.ints:
            return
        name, test, value = self.rng.choice(self.ints), f"{self.number()} > {self.number()}", self.number()
        if self.rng.random() < 0.5:
            self.step([f"{name} = {value}"], f'--when "{test}"')
        else:
            self.step([f"if {test}:", f"    {name} = {value}"])
        self.plain += [f"if {test}:", f"    {name} = {value}"]

    def changing(self) -> None:
        if self.lists and self.rng.random() < 0.6:
            name = self.rng.choice(self.lists)
            body = [f"{name}[0] = {self.number()}", f"{name} += [{self.number()}]"]
        else:
            name = self.new()
            body = [f"{name} = [{self.number()}, {self.number()}]"]
            self.lists.append(name)
        self.step(body)
        self.plain += body

    def catching(self) -> None:
        name, error, divisor = self.new(), self.new(), self.number()
        body = [f"{name} = {self.number()}", f"{name} = {name} // ({divisor})"]
        self.step(body, f"--catch {error}")
        caught = self.new()
        self.step([f"{caught} = 0 if {error} is None else 1"])
        self.plain += ["_caught = None", "try:", *(f"    {b}" for b in body), "except Exception as _e:", "    _caught = _e"]
        self.plain += [f"{error} = _caught", f"{caught} = 0 if {error} is None else 1"]
        self.ints += [name, caught]

    def fanning(self) -> None:
        """A fan-out, perhaps a step per item, perhaps a nested fan-out, and the joins that close them."""
        item, value, total, n = self.new(), self.new(), self.new(), self.rng.randint(0, 3)
        first = [f"{value} = {item} * 10 + {self.number()}"]
        outer = self.step(first, f'--foreach "{item} in range({n})"')
        loop, scope = [f"    {b}" for b in first], [item, value]
        last = outer
        if self.rng.random() < 0.5:
            more = self.new()
            extra = [f"{more} = {value} - {self.number()}"]
            last = self.step(extra)
            loop += [f"    {b}" for b in extra]
            scope.append(more)
        if self.rng.random() < 0.4:
            inner, cell, summed, m = self.new(), self.new(), self.new(), self.rng.randint(1, 2)
            nested = self.step([f"{cell} = {value} + {inner}"], f'--foreach "{inner} in range({m})"')
            last = self.step([f"{summed} = sum(t.{cell} for t in {nested})"], f"--join {nested}")
            loop += [f"    {summed} = sum({value} + {inner} for {inner} in range({m}))"]
            scope.append(summed)
        read = scope[-1]
        self.step([f"{total} = [t.{read} for t in {last}]"], f"--join {last}")
        self.plain += [
            f"{total} = []",
            "def _scope():",
            f"  for {item} in range({n}):",
            *(f"  {b}" for b in loop),
            f"      {total}.append({read})",
            "_scope()",
        ]
        if n:
            self.lists.append(total)


def build(seed: int) -> Book:
    book = Book(f"law{seed}", random.Random(seed))
    book.assigning()
    for _ in range(book.rng.randint(2, 4)):
        book.rng.choice([book.assigning, book.branching, book.changing, book.catching, book.fanning])()
    return book


def read_plainly(book: Book) -> dict[str, object]:
    space: dict[str, object] = {f"{book.flow}_twice": lambda x: 2 * x, "types": types}
    exec("\n".join(book.plain), space)
    return {n: v for n, v in space.items() if n.startswith(f"{book.flow}_v") and isinstance(v, (int, list))}


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> object:
    notebook = Notebook(tmp_path_factory.mktemp("law"))
    notebook.ok("%load_ext flowbook")
    yield notebook
    notebook.close()


@pytest.mark.parametrize("seed", range(EXAMPLES))
def test_a_random_notebook_computes_the_same_as_a_flow(kernel: Notebook, seed: int) -> None:
    book = build(seed)
    expected = read_plainly(book)
    kernel.ok(f"def {book.flow}_twice(x):\n    return 2 * x")
    for cell in book.cells:
        kernel.ok(cell)
    kernel.ok(f"%flow run --flow {book.flow}")

    found = {name: kernel.value(name) for name in expected}
    assert found == {name: repr(value) for name, value in expected.items()}, "\n\n".join(book.cells)


def test_check_serial_proves_the_law_on_ones_own_notebook(kernel: Notebook) -> None:
    said = kernel.ok("%flow check --serial --flow law1").text
    assert "the flow and the serial reading are equal" in said

    kernel.ok("%%flowstep moving --flow unlike\nimport os\npid = os.getpid()\nfine = 1")
    said = kernel.fails("%flow check --serial --flow unlike")
    assert "differ in 1 artifacts; 2 are equal" in said
