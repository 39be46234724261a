"""What code reads from outside, as far as its text shows."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from flowbook.kernel import reads


@pytest.mark.parametrize(
    ("source", "files"),
    [
        ("df = pd.read_csv('data.csv')", {"data.csv"}),
        ("with open('a.txt') as f: pass", {"a.txt"}),
        ("open('a.txt', 'rb')", {"a.txt"}),
        ("open('a.txt', 'w'); open('b', mode='ab'); open('c', 'r+')", set()),
        ("x = np.load(file='x.npy')", {"x.npy"}),
        ("Path('folder').read_text()", {"folder"}),
        ("glob.glob('data/*.csv')", {"data/*.csv"}),
        ("pd.concat(map(pd.read_csv, names)); read(name)", set()),
        ("df.to_csv('out.csv'); plt.savefig('a.png'); json.dump(x, f)", set()),
        ("read_many(['a', 'b'])", {"a", "b"}),
        ("this is no python", set()),
    ],
)
def test_the_files_that_a_text_names_for_reading(source: str, files: set[str]) -> None:
    assert reads.named(source)[0] == files


@pytest.mark.parametrize(
    ("source", "variables"),
    [
        ("os.environ['A']; os.environ.get('B', 'x'); os.getenv('C')", {"A", "B", "C"}),
        ("environ['A']; settings.get('B'); d['C']", {"A"}),
        ("os.environ[name]", set()),
    ],
)
def test_the_variables_that_a_text_asks_for(source: str, variables: set[str]) -> None:
    assert reads.named(source)[1] == variables


def test_the_state_changes_with_the_file_the_folder_and_the_variable(tmp_path: Path) -> None:
    source = "read_csv('a.csv'); glob('data/*.csv'); os.environ['MODE']; open('none.txt'); open('bad\\0name'); open('http://x/y')"
    (tmp_path / "a.csv").write_text("1")
    (tmp_path / "data").mkdir()

    def state(mode: str = "x") -> dict[str, str]:
        return reads.state([source], tmp_path, {"MODE": mode})

    seen = [state()]
    assert seen[0].keys() == {"file a.csv", "file data/*.csv", "variable MODE"}
    (tmp_path / "a.csv").write_text("22")
    seen.append(state())
    (tmp_path / "data" / "new.csv").write_text("")
    seen.append(state())
    os.utime(tmp_path / "data" / "new.csv", (1, 1))
    seen.append(state())
    seen.append(state("y"))
    assert all(a != b for a, b in itertools.pairwise(seen)) and state("y") == seen[-1]


def test_the_text_of_what_has_none_is_empty() -> None:
    assert [reads.source_of(value) for value in (len, 3, type("New", (), {}))] == ["", "", ""]
