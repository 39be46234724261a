"""What starts a flow by itself: which cron is taken, what the others are told, when it fires, and what triggers say."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowbook.spec.decorators import class_findings, schedule, trigger, trigger_on_finish
from flowbook.spec.flowspec import FlowSpec
from flowbook.spec.options import Refused
from flowbook.spec.schedules import Event, Finished, Schedule, describe, in_words, next_times, parse_cron, starts_of

# ---- cron -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("0 6 * * 1", "0 6 * * 1"),
        ("  0   6 * *  MON ", "0 6 * * 1"),
        ("*/15 * * * *", "*/15 * * * *"),
        ("0 0 1,15 jan-mar mon-FRI", "0 0 1,15 1-3 1-5"),
        ("0 0 * * 0", "0 0 * * 0"),
        ("0 0 * * 7", "0 0 * * 7"),
        ("0 0 * * mon-sun", "0 0 * * 1-7"),
        ("0-30/10 08-18 * * *", "0-30/10 8-18 * * *"),
        ("0 0 29 2 *", "0 0 29 2 *"),
        ("0 0 31 2 1", "0 0 31 2 1"),
        ("5 4 * * sun", "5 4 * * 0"),
        ("0 0 1 jul *", "0 0 1 7 *"),
    ],
)
def test_five_fields_of_unix_are_taken(text: str, fields: str) -> None:
    assert parse_cron(text) == fields


OTHER_DIALECTS = [
    ("@daily", "nickname", 'write "0 0 * * *"'),
    ("@Hourly", "nickname", 'write "0 * * * *"'),
    ("@reboot", "nickname", "write the five fields of Unix"),
    ("0 0 ? * SUN *", "year at the end, as EventBridge", 'write "0 0 * * 0"'),
    ("0 6 ? * 2-6 *", "EventBridge", 'write "0 6 * * 1-5"'),
    ("cron(0 6 ? * MON *)", "EventBridge", 'write "0 6 * * 1"'),
    ("cron(0 6 * * 1)", "EventBridge", 'write "0 6 * * 1"'),
    ("0 6 ? * MON 2027", "EventBridge", "write the five fields of Unix"),
    ("rate(5 minutes)", "EventBridge", 'write "*/5 * * * *"'),
    ("rate(1 hour)", "EventBridge", 'write "0 * * * *"'),
    ("rate(90 minutes)", "EventBridge", "write the five fields of Unix"),
    ("0 0 6 * * 1", "six fields with seconds in front", 'write "0 6 * * 1"'),
    ("0 0 6 ? * MON", "seconds in front, as Quartz", 'write "0 6 * * 1"'),
    ("0 0 6 ? * 2", "Quartz", 'write "0 6 * * 1"'),
    ("0 0 6 ? * MON *", "seven fields", 'write "0 6 * * 1"'),
    ("30 0 6 * * 1", "seconds", "write the five fields of Unix"),
    ("0 6 ? * 1", "? as the day of the month", 'write *: "0 6 * * 1"'),
    ("0 6 L * *", "L (the last)", 'write "0 6 28-31 * *"'),
    ("0 6 * * 5L", "L (the last)", 'write "0 6 28-31 * *"'),
    ("0 6 15W * *", "W (the nearest working day)", 'write "0 6 * * 1-5"'),
    ("0 6 * * MON#1", "# (the nth weekday", 'write "0 6 1-7 * *"'),
    ("0 6 * * 1#3", "# (the nth weekday", 'write "0 6 15-21 * *"'),
    ("H 6 * * *", "Jenkins", "write the number"),
    ("0~30 6 * * *", "~ (a random value)", "write the number"),
    ("CRON_TZ=Europe/Berlin 0 6 * * 1", "time zone", 'write cron="0 6 * * 1", timezone="Europe/Berlin"'),
    ("TZ=UTC 0 6 * * 1", "time zone", 'timezone="UTC"'),
]


@pytest.mark.parametrize(("text", "what", "remedy"), OTHER_DIALECTS)
def test_another_dialect_is_refused_with_the_reason_and_our_spelling(text: str, what: str, remedy: str) -> None:
    with pytest.raises(Refused) as raised:
        parse_cron(text)

    assert what in raised.value.what and remedy in raised.value.remedy


@pytest.mark.parametrize(("text", "what", "remedy"), [case for case in OTHER_DIALECTS if case[2].startswith('write "')])
def test_what_is_proposed_instead_is_taken(text: str, what: str, remedy: str) -> None:
    proposed = remedy.removeprefix('write "').removesuffix('"')

    assert parse_cron(proposed)


@pytest.mark.parametrize(
    ("text", "what", "remedy"),
    [
        ("", "no schedule", "five fields"),
        (None, "no schedule", "five fields"),
        (5, "no schedule", "five fields"),
        ("* * * *", "4 fields", "five fields"),
        ("1 2 3 4 5 6 7 8", "8 fields", "five fields"),
        ("60 * * * *", "'60' is no minute", "a number from 0 to 59"),
        ("0 24 * * *", "'24' is no hour", "0 to 23"),
        ("0 0 0 * *", "'0' is no day of the month", "1 to 31"),
        ("0 0 * 13 *", "'13' is no month", "JAN to DEC"),
        ("0 0 * * 8", "'8' is no weekday", "0 to 7, or SUN to SAT"),
        ("0 0 * * monday", "'monday' is no weekday", "SUN to SAT"),
        ("-5 * * * *", "'-5' is no minute", "a range"),
        ("1.5 * * * *", "'1.5' is no minute", "0 to 59"),
        ("*/0 * * * *", "/0 is no step", "from 1 to 60"),
        ("*/90 * * * *", "/90 is no step", "from 1 to 60"),
        ("5/10 * * * *", "a step without a range", "write 5-59/10"),
        ("*/ * * * *", "'*/' is no minute", "*/n"),
        ("1,,2 * * * *", "'' is no minute", "a list"),
        ("0 0 * * FRI-MON", "ends before it begins", "5-7,0-1"),
        ("0 0 31 2 *", "it never fires", "28-31"),
        ("0 0 31 4,6,9,11 *", "it never fires", "day 31"),
        ("0 0 30,31 2 *", "it never fires", "day 30"),
    ],
)
def test_a_schedule_that_cannot_be_says_why(text: Any, what: str, remedy: str) -> None:
    with pytest.raises(Refused) as raised:
        parse_cron(text)

    assert what in raised.value.what and (remedy in raised.value.remedy or remedy in raised.value.what)


@given(st.text(alphabet="0123456789*/-,?LW#@ MONjanH().~", max_size=30))
def test_every_text_is_either_taken_or_refused_and_what_is_taken_fires(text: str) -> None:
    try:
        cron = parse_cron(text)
    except Refused as refused:
        assert refused.what and refused.remedy
    else:
        assert parse_cron(cron) == cron
        assert next_times(Schedule(cron), datetime(2026, 1, 1, tzinfo=UTC), 1)


@pytest.mark.parametrize(
    ("cron", "words"),
    [
        ("* * * * *", "every minute"),
        ("*/5 * * * *", "every 5 minutes"),
        ("7 * * * *", "every hour at minute 7"),
        ("5 4 * * *", "every day at 04:05"),
        ("0 0 * * 7", "every Sunday at 00:00"),
        ("0 0 * * 0", "every Sunday at 00:00"),
        ("0 6 * * 1-5", "Monday to Friday at 06:00"),
        ("0 6 1 * *", "on day 1 of every month at 06:00"),
        ("0 6 1 1 *", ""),
    ],
)
def test_common_schedules_are_told_in_words(cron: str, words: str) -> None:
    assert in_words(cron) == words


def test_fire_times_are_those_of_the_zone_also_where_clocks_change() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    before = datetime(2026, 3, 27, 12, tzinfo=UTC)

    assert next_times(Schedule("0 6 * * 1"), before, 2) == [datetime(2026, 3, 30, 6, tzinfo=UTC), datetime(2026, 4, 6, 6, tzinfo=UTC)]
    daily = next_times(Schedule("30 2 * * *", "Europe/Berlin"), before, 3)
    assert [time.astimezone(UTC).strftime("%d %H:%M") for time in daily] == ["28 01:30", "29 01:00", "30 00:30"]
    autumn = next_times(Schedule("30 2 * * *", "Europe/Berlin"), datetime(2026, 10, 24, 12, tzinfo=berlin), 2)
    assert [time.day for time in autumn] == [25, 26]


# ---- @schedule ----------------------------------------------------------------------------------------------------------


def made(*decorators: Any) -> type:
    class DemoFlow(FlowSpec):
        pass

    for decorate in decorators:
        decorate(DemoFlow)
    return DemoFlow


def said(*decorators: Any, **known: Any) -> str:
    return "\n".join(map(str, class_findings(made(*decorators), **known)))


@pytest.mark.parametrize(
    ("decorate", "expected"),
    [
        (schedule, Schedule("0 0 * * *")),
        (schedule(), Schedule("0 0 * * *")),
        (schedule(daily=True), Schedule("0 0 * * *")),
        (schedule(hourly=True), Schedule("0 * * * *")),
        (schedule(hourly=True, daily=False), Schedule("0 * * * *")),
        (schedule(weekly=True), Schedule("0 0 * * 0")),
        (schedule(cron="0 6 * * 1"), Schedule("0 6 * * 1")),
        (schedule(cron="0 6 * * MON", timezone="America/New_York"), Schedule("0 6 * * 1", "America/New_York")),
    ],
)
def test_a_schedule_becomes_five_fields_in_a_zone(decorate: Any, expected: Schedule) -> None:
    assert starts_of(made(decorate)).schedule == expected
    assert said(decorate) == ""


@pytest.mark.parametrize(
    ("decorate", "message"),
    [
        (schedule(cron="0 0 6 * * 1"), "DemoFlow: @schedule: cron='0 0 6 * * 1': six fields with seconds in front"),
        (schedule(cron="0 6 * * 1", timezone="Berlin"), "timezone='Berlin': 'Berlin' is no time zone\n    did you mean Europe/Berlin?"),
        (schedule(timezone="UTC+2"), "'UTC+2' is no time zone"),
        (schedule(timezone="../etc/passwd"), "is no time zone"),
        (schedule(timezone=5), "timezone=5: not a time zone"),
        (schedule(cron="0 6 * * 1", weekly=True), "weekly and cron are given together"),
        (schedule(daily=False), "nothing is scheduled"),
        (schedule(hourly="yes"), "hourly='yes' is not True or False"),
        (schedule(corn="0 6 * * 1"), "@schedule: unknown argument corn; did you mean cron?"),
        (schedule("0 6 * * 1"), "@schedule: a value without a name\n    write @schedule(hourly=…)"),
    ],
)
def test_a_wrong_schedule_is_a_finding(decorate: Any, message: str) -> None:
    assert message in said(decorate)


def test_a_flow_has_one_schedule_and_its_own_replaces_that_of_its_base() -> None:
    base = made(schedule(cron="0 6 * * 1"))

    class Later(base):  # type: ignore[misc, valid-type]
        pass

    assert starts_of(Later).schedule == Schedule("0 6 * * 1")
    schedule(hourly=True)(Later)
    assert starts_of(Later).schedule == Schedule("0 * * * *") and starts_of(base).schedule == Schedule("0 6 * * 1")
    assert class_findings(Later) == []
    assert "@schedule is given 2 times" in said(schedule, schedule(hourly=True))


def test_a_required_parameter_forbids_a_schedule() -> None:
    assert "@schedule: nobody gives the required parameter alpha\n    give each a default" in said(schedule, required=["alpha"])
    assert said(schedule, required=[]) == ""


# ---- @trigger -----------------------------------------------------------------------------------------------------------


def namer(context: Any) -> str:
    return "data"


@pytest.mark.parametrize(
    ("given", "events"),
    [
        ({"event": "data"}, (Event("data"),)),
        ({"event": {"name": "data", "parameters": {"alpha": "a"}}}, (Event("data", (("alpha", "a"),)),)),
        ({"event": {"name": "data", "parameters": ["alpha", ("beta", "b")]}}, (Event("data", (("alpha", "alpha"), ("beta", "b"))),)),
        ({"event": {"name": "data", "parameters": []}}, (Event("data", ()),)),
        ({"event": namer}, (Event(namer),)),
        ({"events": ["a", {"name": "b"}]}, (Event("a"), Event("b"))),
        ({"events": ("a.b-c",)}, (Event("a.b-c"),)),
    ],
)
def test_a_trigger_names_its_events_and_what_they_give(given: dict[str, Any], events: tuple[Event, ...]) -> None:
    assert [each.events for each in starts_of(made(trigger(**given))).triggers] == [events]
    assert said(trigger(**given)) == ""


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "@trigger: no event is named"),
        ({"event": "a", "events": ["b"]}, "event and events are both given"),
        ({"event": ["a", "b"]}, "is a list\n    write events=[…]"),
        ({"events": "a"}, "events='a' is no list"),
        ({"event": ""}, "the name of the event is missing"),
        ({"event": "a b"}, "'a b' is not the name of event"),
        ({"event": 5}, "5 names no event"),
        ({"event": {"parameters": {}}}, "the name of the event is missing"),
        ({"event": {"name": "a", "params": {}}}, "'params' is not known of an event"),
        ({"event": {"name": "a", "parameters": 5}}, "parameters=5 cannot be read"),
        ({"event": {"name": "a", "parameters": {"x": 5}}}, "cannot be read"),
        ({"event": {"name": "a", "parameters": [("x", "y", "z")]}}, "cannot be read"),
        ({"event": {"name": "a", "parameters": ["x", ("x", "y")]}}, "the parameter x is given twice"),
        ({"events": ["a", "a"]}, "the event a is named twice"),
        ({"event": "a", "options": {"reset": 1}}, "cannot be read\n    write options="),
        ({"events": ["a", "b"], "options": {"reset_at": {"cron": "@daily"}}}, "reset_at cron='@daily': a nickname of some crons"),
        ({"events": ["a", "b"], "options": {"reset_at": {"cron": "0 0 * * *", "timezone": "Mars"}}}, "'Mars' is no time zone"),
        ({"evnt": "a"}, "@trigger: unknown argument evnt; did you mean event?"),
    ],
)
def test_a_wrong_trigger_is_a_finding(given: dict[str, Any], message: str) -> None:
    assert message in said(trigger(**given))


def test_the_fields_of_an_event_must_be_parameters_of_the_flow() -> None:
    decorate = trigger(event={"name": "data", "parameters": {"alhpa": "a"}})

    assert "@trigger: the flow has no parameter alhpa\n    did you mean alpha?" in said(decorate, parameters=["alpha"])
    assert said(decorate) == ""


def test_a_required_parameter_must_come_from_an_event() -> None:
    mapped = {"name": "data", "parameters": {"alpha": "a"}}

    assert said(trigger(event="data"), required=["alpha"], parameters=["alpha"]) == ""  # one event gives all of the same name
    assert said(trigger(event=mapped), required=["alpha"], parameters=["alpha"]) == ""
    assert "no event gives the required beta" in said(trigger(event=mapped), required=["beta"], parameters=["alpha", "beta"])
    assert "no event gives the required alpha" in said(trigger(events=["a", "b"]), required=["alpha"], parameters=["alpha"])


@pytest.mark.parametrize(
    ("given", "flows"),
    [
        ({"flow": "PrepFlow"}, (Finished("PrepFlow"),)),
        ({"flow": "shop.user.ann.PrepFlow"}, (Finished("PrepFlow", "shop", "user.ann"),)),
        ({"flow": "shop.prod.PrepFlow"}, (Finished("PrepFlow", "shop", "prod"),)),
        ({"flow": {"name": "PrepFlow", "project": "shop", "project_branch": "prod"}}, (Finished("PrepFlow", "shop", "prod"),)),
        ({"flow": {"name": "PrepFlow"}}, (Finished("PrepFlow"),)),
        ({"flows": ["A", "B"]}, (Finished("A"), Finished("B"))),
        ({"flow": namer}, (Finished(namer),)),
    ],
)
def test_a_flow_starts_after_others(given: dict[str, Any], flows: tuple[Finished, ...]) -> None:
    assert [each.flows for each in starts_of(made(trigger_on_finish(**given))).on_finish] == [flows]
    assert said(trigger_on_finish(**given)) == ""


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "@trigger_on_finish: no flow is named"),
        ({"flow": "a.B"}, '\'a.B\' is not the name of a flow\n    write "Flow" or "project.branch.Flow"'),
        ({"flow": "a b"}, "'a b' is not the name of flow"),
        ({"flow": 5}, "5 is not the name of flow"),
        ({"flow": {"name": "A", "project": "p"}}, '"project" and "project_branch" go together'),
        ({"flow": {"nam": "A"}}, "'nam' is not known of a flow"),
        ({"flows": ["A", "A"]}, "the flow A is named twice"),
        ({"flow": "DemoFlow"}, "the flow would start itself again and again"),
    ],
)
def test_a_wrong_trigger_on_finish_is_a_finding(given: dict[str, Any], message: str) -> None:
    assert message in said(trigger_on_finish(**given))


def test_all_ways_to_start_go_together_and_are_told_in_order() -> None:
    decorators = [
        schedule(cron="0 6 1 * 1", timezone="Europe/Berlin"),
        trigger_on_finish(flows=["A", "p.prod.B"], options={"reset_at": {"cron": "0 0 * * *"}}),
        trigger(event={"name": "late", "parameters": {"alpha": "a"}}),
        trigger(event="new_data"),
    ]
    flow = made(*decorators)

    assert class_findings(flow) == []
    assert describe(flow) == [
        "schedule 0 6 1 * 1 (Europe/Berlin)",
        "  note: a day of the month and a weekday are both given: cron fires on either, not only where both hold",
        "trigger event new_data",
        "trigger event late with alpha = a",
        "trigger on finish: success of A and success of p.prod.B, all since the last every day at 00:00 (UTC)",
    ]


def test_with_a_time_the_next_fire_times_are_told() -> None:
    lines = describe(made(schedule(cron="0 6 * * 1")), datetime(2026, 1, 1, tzinfo=UTC))

    assert lines == [
        "schedule 0 6 * * 1 (UTC): every Monday at 06:00",
        "  next: Mon 2026-01-05 06:00 UTC, Mon 2026-01-12 06:00 UTC, Mon 2026-01-19 06:00 UTC",
    ]
    assert describe(made()) == []


def test_functions_of_the_deployment_are_named() -> None:
    lines = describe(made(trigger(event=namer), trigger_on_finish(flow=namer)))

    assert lines == [
        "trigger an event that namer names at deployment",
        "trigger on finish: a flow that namer names at deployment",
    ]
    assert not re.search("0x", " ".join(lines))
