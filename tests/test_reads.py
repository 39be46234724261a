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
        ("open('a.txt', 'rb')", {"a.txt", "rb"}),
        ("open('a.txt', 'w'); open('b', mode='ab'); open('c', 'r+')", set()),
        ("sqlite3.connect('x.db'); os.listdir('folder'); run(['cat', 'f.txt'])", {"x.db", "folder", "cat", "f.txt"}),
        ("Path('folder').read_text()", {"folder"}),
        ("Path('out.txt').write_text('new'); (Path('a') / 'b').mkdir()", set()),
        ("df.to_csv('out.csv'); plt.savefig('a.png'); json.dump(x, open('o', 'w'))", set()),
        ("text = 'many\\nlines'; empty = ''; number = 3", set()),
        ("this is no python", set()),
    ],
)
def test_the_files_that_a_text_may_read(source: str, files: set[str]) -> None:
    assert reads.named(source)[0] == files


@pytest.mark.parametrize(
    ("source", "asks"),
    [
        ("t = time.time()", True),
        ("now = datetime.now()", True),
        ("rng = np.random.default_rng()", True),
        ("rng = np.random.default_rng(3)", False),
        ("page = requests.get(url)", True),
        ("rows = pd.read_sql_query(query, connection)", True),
        ("c = sqlite3.connect(name)", True),
        ("time.sleep(1); x = uuid; update(now)", False),
    ],
)
def test_what_asks_the_world(source: str, asks: bool) -> None:
    assert reads.asks_the_world(source) is asks


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
    (tmp_path / "by value").write_text("")
    (tmp_path / "a.csv").write_text("1")
    (tmp_path / "data").mkdir()

    def state(mode: str = "x") -> dict[str, str]:
        return reads.state([source], tmp_path, {"MODE": mode}, [Path("by value"), ["nowhere", 3], 4])

    seen = [state()]
    assert seen[0].keys() == {"file a.csv", "file by value", "variable MODE"}
    (tmp_path / "a.csv").write_text("22")
    seen.append(state())
    (tmp_path / "data" / "new.csv").write_text("")
    seen.append(state())
    os.utime(tmp_path / "data" / "new.csv", (1, 1))
    seen.append(state())
    seen.append(state("y"))
    assert all(a != b for a, b in itertools.pairwise(seen)) and state("y") == seen[-1]


@pytest.mark.parametrize(
    "source", ["card.append('**bold**')", "print('*** done ***', '*' * 30, '**')", "x = 'a?b'", "f'**n = {n}**'", "'[a](b)'"]
)
def test_a_text_with_stars_is_no_file(tmp_path: Path, source: str) -> None:
    (tmp_path / "report.html").write_text("")

    assert reads.state([source], tmp_path, {}) == {}


def test_a_pattern_is_what_it_matches_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "a.csv").write_text("1")
    (tmp_path / "data" / "deep" / "b.csv").write_text("1")

    def state() -> list[dict[str, str]]:
        return [reads.state([source], tmp_path, {}) for source in ("glob.glob('data/*.csv')", "glob.glob('data/**/*.csv', recursive=True)")]

    first = state()
    (tmp_path / "data" / "report.html").write_text("")
    assert state() == first and all(first)
    (tmp_path / "data" / "deep" / "b.csv").write_text("22")
    flat, deep = state()
    assert flat == first[0] and deep != first[1]


def test_the_text_of_what_has_none_is_empty() -> None:
    assert [reads.source_of(value) for value in (len, 3, type("New", (), {}))] == ["", "", ""]
