"""The options of a step cell: what they become, and what is said about what they cannot be."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowbook.errors import DefinitionError
from flowbook.spec.flow import Card, Checkpoint, Foreach, Options, Resources, Retry
from flowbook.spec.options import (
    OPTIONS,
    help_text,
    looks_secret,
    make_options,
    merge,
    min_ok_count,
    parse_defaults,
    parse_duration,
    parse_foreach,
    parse_step_line,
)


def options(line: str, *more: str) -> Options:
    _, given = parse_step_line(f"train {line}", list(enumerate(more, 2)), label="Cell In[7]")
    return make_options(given, label="Cell In[7]")


def said(line: str, *more: str) -> str:
    with pytest.raises(DefinitionError) as raised:
        parse_step_line(line, list(enumerate(more, 2)), label="Cell In[7]")
    return str(raised.value)


TAKEN = [
    ("", Options()),
    ("--after a,b", Options(after=("a", "b"))),
    ("--after 'a, b'", Options(after=("a", "b"))),
    ("--join a --join a", Options(join=("a",))),
    ("--when 'score > 0.9'", Options(when="score > 0.9")),
    ("--when=x", Options(when="x")),
    ("--when -x", Options(when="-x")),
    ("--when 'a == \"b\"'", Options(when='a == "b"')),
    ("--always", Options(always=True)),
    ("--out a,b", Options(out=("a", "b"))),
    ("--out +x", Options(out_add=("x",))),
    ("--out +a,+_b", Options(out_add=("a", "_b"))),
    ("--files 'data/*.csv' --files x.txt", Options(files=("data/*.csv", "x.txt"))),
    ("--retry 3 --minutes-between-retries 0.5", Options(retry=Retry(3, 0.5))),
    ("--timeout 2h", Options(timeout_s=7200)),
    (
        "--retry 5 --backoff 2 --jitter 0.2 --retry-only OSError,requests.Timeout,oom --retry-unless FileNotFoundError",
        Options(retry=Retry(5, backoff=2, jitter=0.2, only=("OSError", "requests.Timeout", "oom"), unless=("FileNotFoundError",))),
    ),
    ("--disk 500GB", Options(resources=Resources(disk_mb=500_000))),
    ("--disk 1000000", Options(resources=Resources(disk_mb=10**6))),
    ("--card", Options(cards=(Card(),))),
    ("--card --card blank --card blank", Options(cards=(Card(), Card("blank")))),
    ("--card=blank --refresh-interval 0.5", Options(cards=(Card("blank", refresh_interval_s=0.5),))),
    ("--card --checkpoint", Options(cards=(Card(),), checkpoint=Checkpoint())),
    (
        "--secret TOKEN --secret env:A=B --secret file:~/keys.env --secret KEY=file:key.txt --secret aws-secrets-manager:prod/db",
        Options(
            secrets=(
                '{"kind": "env", "place": "TOKEN", "target": "TOKEN"}',
                '{"kind": "env", "place": "A", "target": "B"}',
                '{"kind": "file", "place": "~/keys.env"}',
                '{"kind": "file", "place": "key.txt", "target": "KEY"}',
                '{"kind": "aws-secrets-manager", "place": "prod/db"}',
            )
        ),
    ),
    ("--catch error", Options(catch="error")),
    ("--foreach 'x in xs' --min-ok 90%", Options(foreach=Foreach("x", "xs", ("x",)), min_ok="90%")),
    ("--cpu 0.5 --memory 32GB --gpu 2", Options(resources=Resources(0.5, 32000, 2))),
    ("--env A=1 --env B --env C=", Options(env=(("A", "1"), ("B", None), ("C", "")))),
    ("--env A=1 --env A=2", Options(env=(("A", "2"),))),
    ("--env 'URL=a=b c'", Options(env=(("URL", "a=b c"),))),
    ("--flow my-flow.2", Options(flow="my-flow.2")),
    ("--run", Options(run=True)),
    ("--no-cache", Options(no_cache=True)),
    ("--cache-for 1h", Options(cache_for_s=3600)),
    ("--cache-for 7d", Options(cache_for_s=7 * 86400)),
    ("--cache-key 'version()'", Options(cache_key="version()")),
]


@pytest.mark.parametrize(("line", "expected"), TAKEN)
def test_options_become_a_value(line: str, expected: Options) -> None:
    assert options(line) == expected


def test_option_lines_under_the_first_count_as_well() -> None:
    assert options("--gpu 1", "--memory 32GB --retry 3", "", "--always") == Options(
        resources=Resources(1, 32000, 1), retry=Retry(3), always=True
    )


FOREACH = [
    ("x in xs", Foreach("x", "xs", ("x",))),
    ("i, lr in enumerate(rates)", Foreach("i, lr", "enumerate(rates)", ("i", "lr"))),
    ("(a, b), c in pairs", Foreach("(a, b), c", "pairs", ("a", "b", "c"))),
    ("((a, b)) in pairs", Foreach("a, b", "pairs", ("a", "b"))),
    ("x, in xs", Foreach("x,", "xs", ("x",))),
    ("[a, b] in pairs", Foreach("[a, b]", "pairs", ("a", "b"))),
    ("head, *tail in rows", Foreach("head, *tail", "rows", ("head", "tail"))),
    ("x in 'a in b'", Foreach("x", "'a in b'", ("x",))),
    ("x in [y for y in ys if y in zs]", Foreach("x", "[y for y in ys if y in zs]", ("x",))),
    ("x in 1, 2", Foreach("x", "(1, 2)", ("x",))),
    ("x in (1, 2)", Foreach("x", "(1, 2)", ("x",))),
    ("x in a if c else b", Foreach("x", "a if c else b", ("x",))),
    ("x in xs if x > 1", Foreach("x", "[x for x in xs if x > 1]", ("x",))),
    ("i, x in enumerate(xs) if i if x", Foreach("i, x", "[(i, x) for i, x in enumerate(xs) if i if x]", ("i", "x"))),
    ("x in [\n1,\n2]", Foreach("x", "[ 1, 2]", ("x",))),
]


@pytest.mark.parametrize(("text", "expected"), FOREACH)
def test_a_foreach_is_split_by_pythons_own_grammar(text: str, expected: Foreach) -> None:
    found = parse_foreach(text)

    assert found == expected
    compile(found.expr, "", "eval")
    compile(f"for {found.target} in items: pass", "", "exec")


REFUSED_FOREACH = [
    ("xs", "not of the form TARGET in ITEMS"),
    ("x in", "not of the form TARGET in ITEMS"),
    ("1 in xs", "not of the form TARGET in ITEMS"),
    ("x in xs for y in x", "not of the form TARGET in ITEMS"),
    ("x in xs: print(1)", "not of the form TARGET in ITEMS"),
    ("x in xs # all", "not of the form TARGET in ITEMS"),
    ("x in xs: a; y", "not of the form TARGET in ITEMS"),
    ("a.b in xs", "cannot loop with 'a.b'"),
    ("x, a[0] in xs", "cannot loop with 'a[0]'"),
    ("() in xs", "cannot loop with '()'"),
    ("x in (y := xs)", "the expression may not assign, await or yield"),
    ("x in await f()", "the expression may not assign, await or yield"),
    ("", "not of the form TARGET in ITEMS"),
]


@pytest.mark.parametrize(("text", "what"), REFUSED_FOREACH)
def test_a_foreach_that_cannot_be_split_says_how_to_write_one(text: str, what: str) -> None:
    message = said(f"train --foreach {shlex.quote(text)}")

    assert message.startswith(f"Cell In[7]: --foreach {text}: {what}")


TIMES = [
    ("90s", 90),
    ("15m", 900),
    ("2h", 7200),
    ("1h30m", 5400),
    ("1.5h", 5400),
    ("1d", 86400),
    ("45", 45),
    ("0.5", 0.5),
    ("2H", 7200),
    ("1h 5s", 3605),
]


@pytest.mark.parametrize(("text", "seconds"), TIMES)
def test_a_time_is_read_in_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "2x", "-5", "0", "0s", "1m1h", "nan", "inf", "1e5"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(DefinitionError):
        parse_duration(text)


MEMORY = [
    ("500MB", 500),
    ("32GB", 32000),
    ("32gb", 32000),
    ("32G", 32000),
    ("0.5GB", 500),
    ("1TB", 10**6),
    ("1GiB", 1074),
    ("512MiB", 537),
    ("32000", 32000),
    ("4096", 4096),
    ("32MB", 32),
]


@pytest.mark.parametrize(("text", "megabytes"), MEMORY)
def test_memory_is_counted_in_decimal_megabytes(text: str, megabytes: int) -> None:
    assert options(f"--memory {text}").resources.memory_mb == megabytes


REFUSED = [
    (
        "train --memory 32",
        "Cell In[7]: --memory 32: a bare number is megabytes, and 32 MB is hardly meant\n    did you mean 32GB (32000)? Else write 32MB",
    ),
    ("train --memory 64000000000", "Cell In[7]: --memory 64000000000: more than any machine has\n    did you mean 64000MB?"),
    ("train --memory 8MB", "--memory 8MB: too little for Python to start"),
    (
        "train --memory 8kB",
        "--memory 8kB: not an amount of memory\n    write 500MB, 32GB, 30GiB, or a bare number of megabytes such as 32000",
    ),
    ("train --memory -5", "--memory -5: not an amount of memory"),
    ("train --memory lots", "--memory lots: not an amount of memory"),
    ("train --cpu 0", "--cpu 0: not a number of cores"),
    ("train --cpu nan", "--cpu nan: not a number of cores"),
    ("train --gpu 1.5", "--gpu 1.5: not a number that it takes\n    write a whole number from 0 to 1024"),
    ("train --gpu -1", "--gpu -1: not a number that it takes"),
    ("train --retry three", "--retry three: not a number that it takes\n    write a whole number from 0 to 1000"),
    ("train --minutes-between-retries x", "--minutes-between-retries x: not a number of minutes"),
    ("train --cache-for soon", "--cache-for soon: not a time\n    write 90s, 15m, 2h, 1h30m, or a bare number of seconds"),
    ("train --cache-for 0", "--cache-for 0: no time at all"),
    ("train --cache-for", "--cache-for needs a value"),
    ("train --no-cache=1", "--no-cache takes no value"),
    ("train --cache-key 'x ='", "--cache-key x =: not an expression"),
    ("train --cache-key '(x := 1)'", "--cache-key (x := 1): the expression may not assign, await or yield"),
    ("train --timeout soon", "--timeout soon: not a time\n    write 90s, 15m, 2h, 1h30m, or a bare number of seconds"),
    ("train --catch _e", "--catch _e: '_e' begins with an underscore, so it would not be saved"),
    ("train --catch a.b", "--catch a.b: 'a.b' is not a name"),
    ("train --min-ok 120%", "--min-ok 120%: neither a share nor a number of items\n    write 90% or a whole number such as 12"),
    ("train --min-ok 0%", "--min-ok 0%: neither a share nor a number of items"),
    ("train --out a,+b", "--out a,+b: some names have a + and some have none"),
    ("train --out a,", "--out a,: a name is missing"),
    ("train --after class", "--after class: 'class' is not a name"),
    ("train --join a,,b", "--join a,,b: a name is missing"),
    ("train --when 'x >'", "--when x >: not an expression"),
    ("train --when 'x = 1'", "--when x = 1: not an expression"),
    ("train --when '(x := 1)'", "--when (x := 1): the expression may not assign, await or yield"),
    ("train --files ''", "--files : no pattern"),
    ("train --env 1A=2", "--env 1A: '1A' is not a variable's name"),
    ("train --flow ../x", "--flow ../x: '../x' is not a flow's name"),
    ("train --foreahc 'x in xs'", "Cell In[7]: unknown option --foreahc; did you mean --foreach?"),
    ("train --gpus 2", "Cell In[7]: unknown option --gpus; did you mean --gpu?"),
    ("train --cards", "Cell In[7]: unknown option --cards; did you mean --card?"),
    ("--card train", "Cell In[7]: the step has no name\n    write the name first: %%flowstep train --card"),
    ("train --card 'a b'", "--card a b: not a type of card"),
    ("train --card --refresh-interval 0", "--refresh-interval 0: not a number of seconds"),
    ("train --checkpoint=yes", "--checkpoint takes no value"),
    ("train --disk 10", "--disk 10: a bare number is megabytes, and 10 MB is hardly meant\n    did you mean 10GB (10000)? Else write 10MB"),
    ("train --disk big", "--disk big: not an amount of disk space"),
    ("train --backoff 0.5", "--backoff 0.5: not a factor from 1 to 100\n    2 doubles the wait each time, 1 keeps it"),
    ("train --jitter 2", "--jitter 2: not a share from 0 to 1"),
    ("train --retry-only Value-Error", "--retry-only Value-Error: 'Value-Error' is not the name of an error"),
    ("train --retry-unless A,,B", "--retry-unless A,,B: a name is missing"),
    ("train --secret env:1A", "--secret env:1A: '1A' is not a variable's name"),
    ("train --secret kubernetes:My_DB", "--secret kubernetes:My_DB: 'My_DB' is no name of a Secret in Kubernetes"),
    ("train --secret file:", "--secret file:: not a source of secrets"),
    ("train --secret 'my token'", '--secret my token: not a source of secrets\n    write "NAME", "env:NAME=TARGET"'),
    ("train -retry 3", "Cell In[7]: unknown option -retry; did you mean --retry?"),
    ("train --retry", "Cell In[7]: --retry needs a value\n    --retry N: try again up to N times"),
    ("train --out --retry 3", "Cell In[7]: --out needs a value"),
    ("train --always=yes", "Cell In[7]: --always takes no value"),
    ("train --retry 3 --retry 4", "Cell In[7]: --retry is given twice, with different values\n    keep one of them"),
    ("train --when 'x", "Cell In[7]: the options cannot be read: no closing quotation"),
    ("", "Cell In[7]: the step has no name\n    write %%flowstep NAME, for instance: %%flowstep train"),
    ("train fast", "Cell In[7]: unexpected 'fast' after the name 'train'\n    a step has one name"),
    (
        "train --foreach x in xs",
        "Cell In[7]: unexpected 'in' after the name 'train'\n    a value with spaces needs quotes: --foreach \"x in xs\"",
    ),
]


@pytest.mark.parametrize(("line", "message"), REFUSED)
def test_a_wrong_option_names_the_place_the_value_and_what_is_taken(line: str, message: str) -> None:
    assert message in said(line)


NAMES = [
    ("class", "a step cannot be named 'class': it is a keyword of Python"),
    ("flow", "a step cannot be named 'flow': flowbook binds that name itself"),
    ("current", "a step cannot be named 'current'"),
    ("scratch", "a step cannot be named 'scratch'"),
    ("_train", "'_train' is not a step's name\n    use letters, digits and _, beginning with a letter (at most 64)"),
    ("../etc", "'../etc' is not a step's name"),
    ("a.b", "'a.b' is not a step's name"),
    ("1st", "'1st' is not a step's name"),
    ("größe", "'größe' is not a step's name"),
    ("x" * 65, "is not a step's name"),
    ("a/b", "'a/b' is not a step's name"),
]


@pytest.mark.parametrize(("name", "message"), NAMES)
def test_a_step_name_must_be_a_plain_word(name: str, message: str) -> None:
    assert message in said(name)


def test_everything_that_is_wrong_is_said_at_once_each_with_its_line() -> None:
    with pytest.raises(DefinitionError) as raised:
        parse_step_line("class --gpu x", [(2, "--nope 1"), (3, "--retry -1")], label="Cell In[7]")

    assert [f.where for f in raised.value.findings] == ["Cell In[7]", "Cell In[7], line 2", "Cell In[7], line 3", "Cell In[7]"]


SECRETS = [
    ("PASSWORD", "hunter2secret", True),
    ("HF_TOKEN", "hf_abcdefgh", True),
    ("AWS_SECRET_ACCESS_KEY", "abc/def", True),
    ("OPENAI_API_KEY", "x1", True),
    ("URL", "postgres://me:pw@host/db", True),
    ("X", "AKIAABCDEFGHIJKLMNOP", True),
    ("X", "ghp_abcdefghijklmnopqrstuvwxyz0123456789", True),
    ("TOKENIZERS_PARALLELISM", "false", False),
    ("MAX_TOKENS", "4096", False),
    ("TOKEN_LIMIT", "8", False),
    ("URL", "https://host/a:b@c", False),
    ("COMMIT", "0123456789abcdef0123456789abcdef01234567", False),
]


@pytest.mark.parametrize(("name", "value", "secret"), SECRETS)
def test_what_looks_like_a_secret_is_refused_without_being_repeated(name: str, value: str, secret: bool) -> None:
    assert looks_secret(name, value) is secret
    if secret:
        message = said(f"train --env {name}={value}")
        assert value not in message
        assert f"--env {name}: the value looks like a secret" in message and f"write --env {name}, which is never stored" in message


def test_a_secret_in_the_text_of_a_cell_is_refused_without_being_repeated() -> None:
    message = said('train --secret \'inline:{"TOKEN": "hunter2"}\'')

    assert "hunter2" not in message and "--secret inline: a secret does not belong into the text of a cell" in message


def test_an_interval_belongs_to_a_card() -> None:
    with pytest.raises(DefinitionError) as raised:
        options("--refresh-interval 2")

    assert "Cell In[7]: --refresh-interval is of a card, and the step has none" in str(raised.value)
    _, plain = parse_step_line("train", [], label="c")
    _, with_card = parse_step_line("train --card blank", [], label="c")
    defaults = parse_defaults("--refresh-interval 2")
    assert make_options(merge(defaults, plain)) == Options()
    assert make_options(merge(defaults, with_card)) == Options(cards=(Card("blank", refresh_interval_s=2),))


def test_defaults_apply_where_the_cell_does_not_set_the_option() -> None:
    defaults = parse_defaults("--retry 2 --cpu 4 --env A=1 --env B=2 --files a.csv")
    _, own = parse_step_line("train --retry 0 --env B=3 --files b.csv", [], label="c")

    assert make_options(merge(defaults, own)) == Options(
        retry=Retry(0), resources=Resources(cpu=4), env=(("A", "1"), ("B", "3")), files=("a.csv", "b.csv")
    )
    assert parse_defaults(["--retry", "2"]) == {"retry": 2}
    assert parse_defaults("") == {}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--foreach 'x in xs'", "%flow defaults: --foreach belongs to one step"),
        ("--after a", "%flow defaults: --after belongs to one step"),
        ("train", "%flow defaults: 'train' is not an option"),
        ("--retyr 1", "%flow defaults: unknown option --retyr; did you mean --retry?"),
        ("'", "%flow defaults: the options cannot be read"),
    ],
)
def test_defaults_that_make_no_sense_for_all_steps_are_refused(line: str, message: str) -> None:
    with pytest.raises(DefinitionError) as raised:
        parse_defaults(line)

    assert message in str(raised.value)


def test_options_of_the_cache_that_contradict_each_other_are_refused_in_one_cell() -> None:
    for other in ("--cache-for 1h", "--cache-key x"):
        _, given = parse_step_line(f"train --no-cache {other}", [], label="c")
        with pytest.raises(DefinitionError, match="--no-cache and --cache-.* contradict each other"):
            make_options(given)


def test_a_cells_own_word_on_the_cache_is_stronger_than_the_defaults() -> None:
    _, lasting = parse_step_line("train --cache-for 1h", [], label="c")
    _, never = parse_step_line("train --no-cache", [], label="c")

    assert make_options(merge(parse_defaults("--no-cache"), lasting)) == Options(cache_for_s=3600)
    assert make_options(merge(parse_defaults("--cache-for 2h"), never)) == Options(no_cache=True)


def test_min_ok_without_a_fan_out_is_refused() -> None:
    with pytest.raises(DefinitionError) as raised:
        options("--min-ok 3")

    assert "Cell In[7]: --min-ok needs --foreach" in str(raised.value)


@pytest.mark.parametrize(
    ("text", "n", "expected"),
    [("90%", 10, 9), ("90%", 11, 10), ("100%", 3, 3), ("0.1%", 5, 1), ("50%", 0, 0), ("12", 20, 12), ("12", 5, 5), ("0", 5, 0)],
)
def test_min_ok_counts_items(text: str, n: int, expected: int) -> None:
    assert min_ok_count(text, n) == expected


def test_the_help_is_made_of_the_table() -> None:
    lines = help_text().split("\n")

    assert len(lines) == len(OPTIONS)
    for option, line in zip(OPTIONS, lines, strict=True):
        assert line.strip().startswith(f"{option.name} {option.metavar}".strip()) and line.endswith(option.help)


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_text_makes_the_parser_fail_in_any_other_way(line: str, more: str) -> None:
    try:
        name, given = parse_step_line(line, [(2, more)], label="c")
        make_options(given)
    except DefinitionError as error:
        assert error.findings
    else:
        assert name.isidentifier()


@given(st.sampled_from(OPTIONS), st.text(max_size=20))
def test_no_value_makes_an_option_fail_in_any_other_way(option: object, value: str) -> None:
    try:
        parse_step_line("train", [(2, f"{option.name}={shlex.quote(value)}")], label="c")  # type: ignore[attr-defined]
    except DefinitionError as error:
        assert error.findings
