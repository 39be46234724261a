"""Step cells linked: who reads what from whom, in which fan-out, and what each rule says when it is broken."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowbook.spec.body import read_body
from flowbook.spec.flow import Input, Spec, Step, from_json, to_json
from flowbook.spec.graph import Cell, Linked, edges, graph_svg, graph_text, link
from flowbook.spec.options import make_options, parse_step_line


def cell(text: str, number: int = 1) -> Cell:
    """``train --foreach "x in xs" | y = x``: a step's line and its body; `;` parts lines of the body."""
    line, _, source = text.partition(" | ")
    label = f"c{number}"
    name, given = parse_step_line(line, [], label=label)
    source = source.replace("; ", "\n")
    return Cell(name, source, f"<{name}>", label, make_options(given, label=label), read_body(source, label=label))


def linked(*texts: str, plain: Mapping[str, str] | Sequence[str] = (), **more: Any) -> Linked:
    plain = plain if isinstance(plain, Mapping) else dict.fromkeys(plain, "")
    return link([cell(text, number) for number, text in enumerate(texts, 1)], plain=plain, **more)


def steps(*texts: str, **more: Any) -> dict[str, Step]:
    """The steps of a flow in which nothing is wrong."""
    found = linked(*texts, **more)
    assert not found.findings, "\n".join(map(str, found.findings))
    return {step.name: step for step in found.steps}


def said(*texts: str, **more: Any) -> list[str]:
    return [str(finding) for finding in linked(*texts, **more).findings]


# ------------------------------------------------------------------------------------------------------------ edges by data


def test_an_edge_comes_from_a_name_that_a_step_above_makes() -> None:
    flow = steps("start | xs = [1]", "use | n = len(xs) + k", plain=["k"])

    assert flow["use"].inputs == (Input("k", (), True), Input("xs", ("start",)))
    assert flow["use"].captures == ("k",)
    assert flow["use"].saves == flow["use"].certain == ("n",)
    assert flow["start"].inputs == ()


def test_makers_reach_back_to_the_nearest_certain_one() -> None:
    flow = steps(
        "a | x = 0",
        "b | x = x + 1",
        "c --when go | x = 2",
        "d | if go: x = 3",
        "e | y = x",
        plain=["go"],
    )

    assert flow["e"].inputs == (Input("x", ("d", "c", "b")),)
    assert flow["c"].certain == () and flow["d"].certain == ()


def test_a_plain_value_is_the_last_resort_of_possible_makers() -> None:
    flow = steps("a --when go | x = 1", "b | y = x", plain=["x", "go"])

    assert flow["b"].inputs == (Input("x", ("a",), captured=True),)
    assert flow["b"].captures == ("x",)


def test_a_body_that_may_bind_a_name_itself_reads_it_if_it_is_there() -> None:
    flow = steps("a | x = 1", "b | if k: x = 2; y = x", "c | for i in k: t = i; z = t", plain=["k"])

    assert flow["b"].inputs[0] == Input("k", (), True)
    assert Input("x", ("a",), required=False) in flow["b"].inputs
    assert [read.name for read in flow["c"].inputs] == ["k"]


def test_changes_in_place_read_a_name_and_make_a_new_version() -> None:
    flow = steps("a | d = {}", "b | d['k'] = 1", "c | d.x = 2; d += 1; del d[0]", "e | y = d")

    assert flow["b"].inputs == (Input("d", ("a",)),)
    assert flow["c"].inputs == (Input("d", ("b",)),)
    assert flow["e"].inputs == (Input("d", ("c",)),)
    assert flow["b"].saves == ("d",) and flow["b"].watch == ()


def test_changes_of_captured_data_are_kept_but_those_of_modules_only_warned_of() -> None:
    found = linked("a | d['k'] = 1; plt.rc = 2", "b | y = d", plain=["d", "plt"], modules=["plt"])

    assert not found.findings
    assert found.steps[0].saves == ("d",)
    assert found.steps[1].inputs == (Input("d", ("a",)),)
    assert [str(w) for w in found.warnings] == [
        "step a (c1, line 2): `plt` is a module, function or class: what this step changes in it is gone when the step ends\n"
        "    put the change into a %%flowsetup cell to have it in every step"
    ]


def test_builtins_are_never_missing_but_a_step_above_may_shadow_them() -> None:
    flow = steps("a | x = max(1, 2)", "b | max = 3", "c | y = max")

    assert flow["a"].inputs == ()
    assert flow["c"].inputs == (Input("max", ("b",), required=False),)


def test_parameters_are_neither_inputs_nor_captures() -> None:
    flow = steps("a --when 'epochs > 1' | x = rate", params=["rate", "epochs", "unused"], plain=["rate"])

    assert flow["a"].params == ("epochs", "rate")
    assert flow["a"].inputs == flow["a"].plan_inputs == () and flow["a"].captures == ()


def test_what_setup_cells_bind_is_there_in_every_worker() -> None:
    flow = steps("a | x = np", plain=["np"], setup_names=["np"])

    assert flow["a"].inputs == () and flow["a"].captures == ()


def test_catch_makes_all_names_only_possible_but_its_own_certain() -> None:
    flow = steps("a | x = 0", "b --catch error | x = 1", "c | y = x; z = error", "d --when go --catch why | q = 1", plain=["go"])

    assert flow["c"].inputs == (Input("x", ("b", "a")), Input("error", ("b",)))
    assert flow["b"].saves == ("x", "error") and flow["b"].certain == ("error",)
    assert flow["d"].certain == ()


# ------------------------------------------------------------------------------------------------------- visible definitions


def test_imports_functions_and_classes_of_a_step_are_visible_below() -> None:
    flow = steps("a | import numpy as np; k = 2; def f(): return k", "b | class C: pass", "c | y = f(np, C)")

    assert flow["a"].saves == ("k", "np", "f")
    assert set(flow["c"].inputs) == {
        Input("f", ("a",)),
        Input("np", ("a",)),
        Input("C", ("b",)),
        Input("k", ("a",), required=False),
    }


def test_who_uses_a_function_of_another_step_reads_what_the_function_reads() -> None:
    flow = steps("a | k = 1", "b | def g(): return k; def f(): return g() + m", "c | k = 2", "d | y = f()", plain=["m"])

    assert set(flow["d"].inputs) == {
        Input("f", ("b",)),
        Input("g", ("b",), required=False),
        Input("k", ("c",), required=False),
        Input("m", (), True, required=False),
    }
    assert flow["d"].captures == ("m",)


def test_a_function_may_use_what_only_a_step_below_makes() -> None:
    flow = steps("a | def f(): return late", "b | late = 1", "c | y = f()")

    assert set(flow["c"].inputs) == {Input("f", ("a",)), Input("late", ("b",), required=False)}


def test_an_import_repeated_in_siblings_is_no_ambiguity() -> None:
    flow = steps("a | import os", "b | import os", "c | y = os.sep")

    assert flow["c"].inputs == (Input("os", ("b",)),)


def test_an_import_never_puts_a_step_into_a_fan_out() -> None:
    texts = ("start | import os; xs = [1]", 'train --foreach "x in xs" | import os; y = x', "end | z = os.sep")

    assert steps(*texts)["end"].inputs == (Input("os", ("start",)),)
    assert steps(*texts)["end"].scope == ()


def test_an_import_made_only_in_a_fan_out_is_repeated_past_the_join() -> None:
    texts = ('train --foreach "x in [1]" | import os; y = x', "end --join train | z = os.sep")

    assert said(*texts) == [
        "step end (c2, line 1): `os` is imported by step train (c1), for each item of train only\n    import it again in this step"
    ]
    assert steps(*texts, plain=["os"])["end"].captures == ("os",)


# ------------------------------------------------------------------------------------------------------ names that are missing


def test_a_name_that_nothing_makes_comes_with_the_nearest_spelling() -> None:
    assert said("a | x = lerning_rate", plain=["learning_rate"]) == [
        "step a (c1, line 1): nothing makes `lerning_rate`; did you mean `learning_rate`?\n    define it in a plain cell or in a step above"
    ]
    assert said("a | score = 1", "b | x = scoer") == [
        "step b (c2, line 1): nothing makes `scoer`; did you mean `score`?\n    define it in a plain cell or in a step above"
    ]
    assert said("a | x = zzz") == ["step a (c1, line 1): nothing makes `zzz`\n    define it in a plain cell or in a step above"]
    assert said("a --when gp | x = 1", plain=["gpu"]) == [
        "step a (c1), --when: nothing makes `gp`; did you mean `gpu`?\n    define it in a plain cell or in a step above"
    ]


def test_a_name_made_below_names_both_cells() -> None:
    assert said("first | x = later_made", "second | later_made = 1") == [
        "step first (c1, line 1): `later_made` is made by step second (c2), which stands below\n"
        "    move that cell above this one, or rename one of the two"
    ]
    assert not said("first | x = late", "second | late = 1", plain=["late"])


def test_a_step_read_without_a_join_says_so() -> None:
    assert said("train | x = 1", "best | y = train.x") == [
        "step best (c2, line 1): `train` is a step, and its tasks are read through a join\n    add --join train"
    ]


HIDDEN = [
    ("a | for i in k: pass", "i", "a loop variable"),
    ("a | with k as i: pass", "i", "the target of a with statement"),
    ("a | _i = 1", "_i", "a name with a leading underscore"),
]


@pytest.mark.parametrize("plain", [[], ["i", "_i"]])
@pytest.mark.parametrize(("maker", "name", "kind"), HIDDEN)
def test_a_name_last_bound_without_being_saved_is_never_read_from_elsewhere(maker: str, name: str, kind: str, plain: list[str]) -> None:
    assert said(f"z | i = 0; j = {name}", maker, f"b | y = {name}", plain=["k", *plain, "_i"])[-1] == (
        f"step b (c3, line 1): `{name}` was last bound by step a (c2), where it is {kind}, which is not saved\n"
        f"    write --out +{name} in a, or use another name there"
    )


def test_what_is_bound_but_not_saved_is_listed_with_the_reason() -> None:
    flow = steps("a --out x | x = y = 1; _p = 2; for i in [1]: pass")

    assert flow["a"].saves == ("x",)
    assert flow["a"].unsaved == (("_p", "a name with a leading underscore"), ("i", "a loop variable"), ("y", "not named in --out"))


def test_a_name_deleted_above_cannot_be_read() -> None:
    assert said("a | x = 1", "b | del x", "c | y = x") == [
        "step c (c3, line 1): `x` is deleted by step b (c2), which stands above\n"
        "    remove `del x` there, or make `x` again before it is read"
    ]
    assert said("a | tmp = 1; del tmp", "b | y = tmp", plain=["tmp"])
    assert not said("a | tmp = 1; del tmp", "b | tmp = 2", "c | y = tmp")


# ----------------------------------------------------------------------------------------------------------------------- --out


def test_out_restricts_and_adds() -> None:
    flow = steps('a --out x --foreach "i in [1]" | x = 1; y = 2; import os', "b --out +_p,+j | _p = 1; for j in [1]: pass")

    assert flow["a"].saves == ("i", "x", "os")
    assert flow["b"].saves == ("_p", "j") and flow["b"].certain == ("_p", "j")


def test_out_plus_saves_an_input_that_a_call_changed() -> None:
    flow = steps("a | rs = []", "b --out +rs | rs.append(1)", "c | n = len(rs)")

    assert flow["b"].saves == ("rs",) and flow["b"].watch == ()
    assert flow["c"].inputs == (Input("rs", ("b",)),)


@pytest.mark.parametrize(("option", "sign"), [("scor", ""), ("+scor", "+")])
def test_out_of_a_name_that_does_not_occur_is_an_error(option: str, sign: str) -> None:
    assert said(f"a --out {option} | score = 1") == [
        f"step a (c1): --out {sign}scor: the step neither assigns nor reads `scor`; did you mean `score`?\n    name what the step assigns"
    ]


def test_a_name_left_out_by_out_is_not_read_from_an_older_maker() -> None:
    assert said("z | y = 0", "a --out x | x = y + 1; y = 2", "b | w = y") == [
        "step b (c3, line 1): `y` was last made by step a (c2), whose --out leaves it out\n    write --out x,y in a"
    ]


# -------------------------------------------------------------------------------------------------------------------- fan-outs

SWEEP = ("start | rates = [1, 2]", 'train --foreach "lr in rates" | model = lr; score = lr')


def test_a_foreach_step_makes_its_items_and_runs_in_its_own_scope() -> None:
    flow = steps(*SWEEP)

    assert flow["train"].scope == ("train",) and flow["train"].base == ()
    assert flow["train"].saves == flow["train"].certain == ("lr", "model", "score")
    assert flow["train"].inputs == () and flow["train"].plan_inputs == (Input("rates", ("start",)),)


def test_a_step_runs_in_the_deepest_fan_out_of_what_it_reads() -> None:
    flow = steps(*SWEEP, "check | ok = model > 1", 'inner --foreach "f in range(lr)" | v = f + model', "deep | w = v + ok")

    assert flow["check"].scope == ("train",)
    assert flow["inner"].scope == ("train", "inner") and flow["inner"].base == ("train",)
    assert flow["deep"].scope == ("train", "inner")


def test_a_join_closes_one_level() -> None:
    flow = steps(
        *SWEEP,
        'inner --foreach "f in range(lr)" | v = f',
        "per_train --join inner | best = max(t.v for t in inner)",
        "end --join per_train,start | all = [t.best for t in per_train]",
    )

    assert flow["per_train"].scope == ("train",)
    assert flow["end"].scope == ()
    assert flow["per_train"].inputs == () and flow["end"].inputs == ()


def test_a_bare_name_of_a_joined_fan_out_is_read_as_an_attribute() -> None:
    assert said(*SWEEP, "best --join train | b = max(train); s = score") == [
        "step best (c3, line 2): `score` is made by step train (c2) for each item of train, and this step joins that fan-out\n"
        "    read it as t.score of each t in train"
    ]
    assert said(*SWEEP, "best --join train | b = 1", "late | s = score") == [
        "step late (c4, line 1): `score` is made by step train (c2) for each item of train, and step best (c3) joins that fan-out\n"
        "    add --join train and read it as t.score of each t in train"
    ]


def test_a_name_that_a_join_step_only_might_read_is_not_taken_from_the_fan_out() -> None:
    flow = steps(*SWEEP, "best --join train | for t in train: score = t.score; print(score)")

    assert flow["best"].scope == () and flow["best"].inputs == ()


def test_names_of_fan_outs_that_do_not_nest_are_an_error() -> None:
    assert said(*SWEEP, 'mlp --foreach "n in rates" | net = n', "both | x = model; y = net") == [
        "step both (c4, line 2): `net` comes from the fan-out of mlp, and other names from that of train: they do not nest\n"
        "    close one of them: --join mlp or --join train"
    ]


def test_two_sweeps_may_use_the_same_item_name() -> None:
    flow = steps(*SWEEP, 'mlp --foreach "lr in rates" | net = lr', "use | y = net * lr")

    assert flow["use"].scope == ("mlp",)
    assert set(flow["use"].inputs) == {Input("net", ("mlp",)), Input("lr", ("mlp",))}


def test_a_join_inside_a_fan_out_binds_the_steps_of_the_same_scope_and_of_those_around() -> None:
    flow = steps(
        *SWEEP,
        'inner --foreach "f in range(lr)" | v = f',
        "side | s = lr",
        "sum --join inner,side,start | n = len(inner), side.s, start.rates",
    )

    assert flow["sum"].scope == ("train",)


def test_joining_across_fan_outs_is_refused() -> None:
    found = said(
        *SWEEP,
        'inner --foreach "f in range(lr)" | v = f',
        'mlp --foreach "n in rates" | net = n',
        "odd --join inner,mlp | x = 1",
    )

    assert found == [
        "step odd (c5): --join mlp: that step runs in the fan-out mlp, and this one for each item of train\n"
        "    close one level at a time: join it first in a step of the fan-out around it, then join that step"
    ]


def test_always_is_refused_in_a_fan_out_and_min_ok_outside() -> None:
    assert said(*SWEEP, "tell --always | y = model") == [
        "step tell (c3): --always cannot stand in a fan-out, and this step runs for each item of train\n"
        "    join train, or move it to a step outside"
    ]
    assert not said(*SWEEP, "tell --always --join train | y = len(train)")


def test_when_of_a_foreach_step_may_not_read_the_item() -> None:
    assert said("a --foreach 'x in xs' --when 'x > 1' | y = x", plain=["xs"]) == [
        "step a (c1), --when: --when reads `x`, an item of the step's own --foreach, but is decided once, before the items\n"
        '    filter in the fan-out: --foreach "x in … if x > 1"'
    ]


# ----------------------------------------------------------------------------------------------------------- unordered makers


def test_unordered_siblings_that_make_one_name_are_an_error_that_offers_a_join() -> None:
    assert said("xgb | score = 1", "mlp | score = 2", "c | y = score") == [
        "step c (c3, line 1): `score` is made by both step xgb (c1) and step mlp (c2), and neither comes after the other\n"
        "    write --join xgb,mlp and read xgb.score or mlp.score; or --after xgb in mlp"
    ]


def test_ordered_makers_are_no_ambiguity() -> None:
    assert steps("a | x = 1", "b --after a | x = 2", "c | y = x")["c"].inputs == (Input("x", ("b",)),)
    assert steps("a | x = 1; z = 0", "m | w = z", "b | x = w", "c | y = x")["c"].inputs == (Input("x", ("b",)),)
    assert not said("a | x = 1", "b --when k | x = 2", "c | y = x", plain=["k"])


# ------------------------------------------------------------------------------------------------------------------ references


REFERENCES = [
    ("--after trian", "step pick (c2): --after trian: there is no step trian; did you mean train?\n    steps: train, pick, last"),
    ("--join trian", "step pick (c2): --join trian: there is no step trian; did you mean train?\n    steps: train, pick, last"),
    ("--after zzz", "step pick (c2): --after zzz: there is no step zzz\n    steps: train, pick, last"),
    ("--after pick", "step pick (c2): --after pick names the step itself\n    remove --after pick"),
    ("--join last", "step pick (c2): --join last: step last (c3) stands below\n    move one of the two cells"),
]


@pytest.mark.parametrize(("option", "message"), REFERENCES)
def test_after_and_join_name_steps_above(option: str, message: str) -> None:
    assert said("train | x = 1", f"pick {option} | y = 1", "last | z = 1") == [message]


def test_a_cycle_of_references_is_named() -> None:
    assert said("a --after b | x = 1", "b --join a | y = 1") == [
        "step a (c1): --after and --join form a cycle: a → b → a\n    remove one of them"
    ]
    assert said("a --after c | x = 1", "b --after a | y = 1", "c --after b | z = 1") == [
        "step a (c1): --after and --join form a cycle: a → c → b → a\n    remove one of them"
    ]


# ----------------------------------------------------------------------------------------------------------------------- names


def test_two_steps_of_one_name_are_refused() -> None:
    assert said("a | x = 1", "a | y = 1") == ["step a (c2): a step named a stands already in c1\n    rename one of them"]


def test_a_step_named_like_an_artifact_is_refused_with_both_places() -> None:
    assert said("best | x = 1", "pick | best = 2") == [
        "step best (c1): the step is named like `best`, which step pick (c2) makes\n    rename one of them"
    ]
    assert said('x --foreach "x in [1]" | y = x')


def test_a_step_named_like_a_plain_name_or_builtin_that_a_body_reads_is_refused() -> None:
    assert said("train | x = 1", "b | y = train()", plain={"train": "Cell In[3]"}) == [
        "step train (c1): the step is named like a plain name of Cell In[3] that step b (c2) reads\n    rename the step"
    ]
    assert said("filter | x = 1", "b | y = filter(None, [])") == [
        "step filter (c1): the step is named like a builtin that step b (c2) reads\n    rename the step"
    ]
    assert not said("train | x = 1", "b --join train | y = train.x", plain=["train"])


@pytest.mark.parametrize(
    "text",
    [
        "a | rate = 1",
        "a | rate += 1",
        "a | for rate in [1]: pass",
        "a | rate.x = 1",
        "a | del rate",
        'a --foreach "rate in [1]" | x = 1',
        "a --catch rate | x = 1",
    ],
)
def test_parameters_are_read_only(text: str) -> None:
    messages = said(text, params=["rate"])

    assert len(messages) == 1
    assert re.match(
        r"step a \(c1(, line 1)?\): `rate` is a parameter, and parameters are read-only\n    use another name in the step", messages[0]
    )


def test_everything_that_is_wrong_is_said_at_once() -> None:
    assert len(said("a --after zz | x = nope", "b | return 1", "c | y = lost")) == 4


# ----------------------------------------------------------------------------------------------------------------------- plans


def test_the_maker_of_a_plans_only_input_hosts_it() -> None:
    flow = steps(
        "start | rates = [1]",
        'train --foreach "i, lr in pairs(rates, k)" --when "len(rates) > limit" | m = lr',
        plain=["pairs", "k"],
        params=["limit"],
    )

    assert flow["train"].host == "start" and flow["start"].hosted == ("train",)
    assert flow["start"].captures == ("k", "pairs") and flow["train"].captures == ()
    assert flow["start"].params == ("limit",) and flow["train"].params == ()


NOT_HOSTED = [
    ("a | xs = [1]", "b | n = 2", 'c --foreach "x in xs[:n]" | y = x'),  # two makers
    ("a --when k | xs = [1]", "b --when k | xs = [2]", 'c --foreach "x in xs" | y = x'),  # the last of several
    ("a --catch e | xs = [1]", "b | n = 1", 'c --foreach "x in xs" | y = x'),
    ("a | k = 1", "b | xs = [1]; len = 2; del len", 'c --foreach "x in xs[:len(xs)]" | y = x'),  # its own `len`
    ("a | xs = [1]", "b | n = 1", 'c --foreach "x in [k]" | y = x'),  # no artifact at all
    ("a | xs = [1]; _k = 1; for kk in [1]: pass", "b | n = 1", 'c --foreach "x in xs if kk" | y = x'),
    ("a | xs = [1]", "b --foreach 'x in [1]' | n = xs", "c --when 'len(xs) and n' | y = 1"),
    ("a | xs = [1]", "b | n = 1", "c --join a --foreach 'x in a.xs' | y = x"),
]


@pytest.mark.parametrize("texts", NOT_HOSTED)
def test_every_other_plan_is_a_task_of_its_own(texts: tuple[str, ...]) -> None:
    flow = linked(*texts, plain=["k", "kk"]).steps

    assert flow[-1].host is None
    assert all(not step.hosted for step in flow)


def test_a_nested_plan_is_hosted_in_the_fan_out_around_it() -> None:
    flow = steps(*SWEEP, 'inner --foreach "f in range(model)" | v = f', "deep --when 'v > 1' | w = 1")

    assert flow["inner"].host == "train" and flow["deep"].host == "inner"
    assert flow["deep"].scope == ("train", "inner")


def test_a_plan_of_its_own_keeps_its_captures() -> None:
    flow = steps('a --foreach "x in xs" --when go | y = x', plain=["xs", "go"])

    assert flow["a"].captures == ("go", "xs")
    assert flow["a"].plan_inputs == (Input("go", (), True), Input("xs", (), True))


# -------------------------------------------------------------------------------------------------------------------- watching


def test_loaded_inputs_are_watched_as_an_error_where_something_reads_them_later() -> None:
    flow = steps(
        "a | rs = []; ms = []", "b | rs.append(k); ms.sort(); f(np)", "c | n = len(rs)", plain=["k", "np", "f"], modules=["np", "f"]
    )

    assert flow["b"].watch == (("k", "warn"), ("rs", "error"), ("ms", "warn"))
    assert flow["c"].watch == (("rs", "warn"),)


def test_in_a_fan_out_every_change_of_an_input_is_an_error() -> None:
    assert steps(*SWEEP, "use | model.eval()")["use"].watch == (("model", "error"),)


def test_functions_and_imports_of_other_steps_are_not_watched() -> None:
    assert steps("a | import os; def f(): pass", "b | y = f(os)")["b"].watch == ()


# --------------------------------------------------------------------------------------------------------------------- drawing

DIAMOND = (
    "start | xs = [1]",
    'left --foreach "x in xs" | a = x',
    'right --when "xs < [2]" | b = xs',
    "end --join left --after right | c = len(left), xs",
)


def test_edges_carry_the_names_read() -> None:
    assert edges(linked(*DIAMOND).steps) == [
        ("start", "left", ("xs",)),
        ("start", "right", ("xs",)),
        ("start", "end", ("xs",)),
        ("left", "end", ()),
        ("right", "end", ()),
    ]


def test_the_text_shows_each_step_with_what_it_reads_from_whom() -> None:
    assert graph_text(linked(*DIAMOND).steps).split("\n") == [
        "start",
        "  left   for x in xs  ← start (xs)",
        "  right  when xs < [2]  ← start (xs)",
        "    end  ← start (xs), left (join), right (after)",
    ]
    assert graph_text([]) == "no steps"


def test_the_drawing_is_well_formed_and_escaped() -> None:
    svg = graph_svg(linked(*DIAMOND).steps, {"left": "running", "right": "<b>odd</b>"})
    root = ET.fromstring(svg)
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]

    assert texts == ["start", "left", "for x in xs", "right", "when xs < [2]", "end"]
    assert "var(--jp-ui-font-color1, #222)" in svg and "var(--jp-brand-color1" in svg
    assert "<b>" not in svg and "&lt;b&gt;" in svg
    assert ET.fromstring(graph_svg([])) is not None


def test_the_drawing_has_no_boxes_on_top_of_each_other() -> None:
    texts = ["s | x = 1", *(f"p{n} | y{n} = x" for n in range(5)), "m | z = y0 + y4", "e | w = z + y2 + x"]
    root = ET.fromstring(graph_svg(linked(*texts).steps))
    boxes = [{key: float(r.get(key, 0)) for key in ("x", "y", "width", "height")} for r in root.iter() if r.tag.endswith("rect")]

    assert len(boxes) == 8
    for i, one in enumerate(boxes):
        for other in boxes[i + 1 :]:
            apart = any(one[k] + one[size] <= other[k] or other[k] + other[size] <= one[k] for k, size in (("x", "width"), ("y", "height")))
            assert apart


# -------------------------------------------------------------------------------------------------------------------- properties

LINES = [
    "x = 1", "y = x", "x += 1", "z = [y]", "if y: x = 2", "import os", "def f(): return x", "y = f()", "del x", "for i in [1]: z = i",
    "w = os", "x[0] = 1", "print(t)", "pass", "y = s0",
]  # fmt: skip
OPTIONS = [
    "",
    "",
    "",
    '--foreach "i in [1, 2]"',
    '--foreach "i in x"',
    "--when y",
    "--catch error",
    "--join s0",
    "--join s1",
    "--after s0",
    "--out +x",
    "--always",
]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(OPTIONS), st.lists(st.sampled_from(LINES), min_size=1, max_size=3)), min_size=1, max_size=6))
def test_any_notebook_links_without_failing_and_every_time_alike(notebook: list[tuple[str, list[str]]]) -> None:
    texts = [f"s{n} {options} | {'; '.join(lines)}" for n, (options, lines) in enumerate(notebook)]
    found = linked(*texts, plain=["t"])

    assert found == linked(*texts, plain=["t"])
    order = {step.name: n for n, step in enumerate(found.steps)}
    for step in found.steps:
        for read in (*step.inputs, *step.plan_inputs):
            for maker in read.makers:
                scope = found.steps[order[maker]].scope
                assert order[maker] < order[step.name]
                assert read.name in found.steps[order[maker]].saves
                assert step.scope[: len(scope)] == scope
        assert set(step.certain) <= set(step.saves)
        assert not {name for name, _ in step.unsaved} & set(step.saves)
        if step.host:
            assert step.name in found.steps[order[step.host]].hosted
    spec = Spec("f", "1", found.steps)
    assert from_json(Spec, to_json(spec)) == spec
    ET.fromstring(graph_svg(found.steps))
    graph_text(found.steps)
