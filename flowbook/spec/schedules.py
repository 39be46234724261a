"""What starts a flow by itself: @schedule, @trigger, @trigger_on_finish, as values; read, checked and put into words.

Nothing here starts anything, and nothing looks at a clock: `next_times` is given the time. One dialect of cron counts, the five
fields of Unix, in UTC unless a zone is named; every other dialect is refused with the reason and, where there is one, the same
schedule in ours. Read from below: `Schedule`, `Trigger` and `TriggerOnFinish` are made of the arguments of the decorators
(`schedule_of`, `trigger_of`, `finish_of`), `findings` checks a class, `describe` tells what would start it.

Fire times come from cronsim: it follows Debian's cron where clocks change, has no dependencies and no second dialect to switch
off by accident (croniter guesses seconds, years, `L` and hashes). Only this file names it, and only when times are asked for.
"""

from __future__ import annotations

import calendar
import difflib
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import Any

from flowbook.errors import DefinitionError, Finding
from flowbook.spec.marks import own_marks
from flowbook.spec.options import Refused
from flowbook.spec.parameters import evaluate

HOURLY, DAILY, WEEKLY = "0 * * * *", "0 0 * * *", "0 0 * * 0"
NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": WEEKLY,
    "@daily": DAILY,
    "@midnight": DAILY,
    "@hourly": HOURLY,
}
DAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
EVENT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}\Z")
FLOW_PATH = re.compile(r"[A-Za-z0-9_][\w.-]{0,252}\Z")
FIVE = 'write the five fields of Unix: minute hour day month weekday; "0 6 * * 1" is every Monday at 6:00'


# ---- cron -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Field:
    """One of the five: its range, and the names that stand for numbers."""

    name: str
    least: int
    most: int
    words: tuple[str, ...] = ()

    def number(self, text: str) -> int:
        """Raises Refused for what is no number of this field."""
        if text.upper() in self.words:
            return self.words.index(text.upper()) + self.least
        if not re.fullmatch(r"\d{1,4}", text) or not self.least <= int(text) <= self.most:
            names = f", or {self.words[0]} to {self.words[-1]}" if self.words else ""
            raise Refused(f"{text!r} is no {self.name}", f"a {self.name} is a number from {self.least} to {self.most}{names}")
        return int(text)


FIELDS = (
    Field("minute", 0, 59),
    Field("hour", 0, 23),
    Field("day of the month", 1, 31),
    Field("month", 1, 12, MONTHS),
    Field("weekday", 0, 7, DAYS),
)


def parse_cron(text: Any) -> str:
    """The five fields, with single spaces and numbers for names. Raises Refused, with our spelling of another dialect where it has one.

    >>> parse_cron("0  6 * * mon-fri")
    '0 6 * * 1-5'
    """
    if not isinstance(text, str) or not text.strip():
        raise Refused("no schedule", FIVE)
    stripped = text.strip()
    _refuse_dialects(stripped)
    parts = stripped.split()
    if len(parts) != len(FIELDS):
        raise Refused(f"{len(parts)} fields, where cron has five", FIVE)
    fields = [_parse_field(part, field, parts) for part, field in zip(parts, FIELDS, strict=True)]
    _refuse_never(fields)
    return " ".join(fields)


def _refuse_dialects(text: str) -> None:
    if text.startswith("@"):
        nickname = NICKNAMES.get(text.lower())
        raise Refused("a nickname of some crons", f'write "{nickname}"' if nickname else FIVE)
    if re.match(r"(CRON_)?TZ=", text):
        zone, _, rest = text.partition("=")[2].partition(" ")
        raise Refused("a time zone has an argument of its own", f'write cron="{rest.strip()}", timezone="{zone}"')
    if rate := re.fullmatch(r"rate\((\d+) (minute|hour|day)s?\)", text, re.IGNORECASE):
        raise Refused("a rate of EventBridge", _rate(int(rate[1]), rate[2].lower()))
    inside = re.fullmatch(r"cron\((.*)\)", text, re.IGNORECASE)
    parts = (inside[1] if inside else text).split()
    if len(parts) in (6, 7):
        what, unix = _six_fields(parts)
        raise Refused(what, f'write "{unix}"' if unix else FIVE)
    if inside:
        raise Refused("the form of EventBridge", f'write "{" ".join(parts)}"' if len(parts) == len(FIELDS) else FIVE)


def _rate(n: int, unit: str) -> str:
    most = {"minute": 59, "hour": 23, "day": 31}[unit]
    if not 0 < n <= most:
        return FIVE
    every = "*" if n == 1 else f"*/{n}"
    cron = {"minute": f"{every} * * * *", "hour": f"0 {every} * * *", "day": f"0 0 {every} * *"}[unit]
    return f'write "{cron}"'


def _six_fields(parts: list[str]) -> tuple[str, str]:
    """What six or seven fields are, and the same in five; "" where there is no such thing."""
    has_year = len(parts) == 7 or re.fullmatch(r"\d{4}([-,/]\d+)*", parts[-1]) is not None
    # Year last is EventBridge, which demands a "?"; Quartz puts seconds first and may demand one, too. A leading second is nearly always 0.
    eventbridge = len(parts) == 6 and (has_year or ("?" in parts[2:5:2] and parts[-1] == "*"))
    if eventbridge:
        what, five, every_year = "six fields with a year at the end, as EventBridge has them", parts[:5], parts[5] == "*"
        seconds = True
    else:
        what = f"{'seven' if has_year else 'six'} fields with seconds in front, as Quartz has them; Unix cron has no seconds"
        five, every_year, seconds = parts[1:6], len(parts) == 6 or parts[6] == "*", parts[0] in ("0", "00")
    if not (every_year and seconds):
        return what, ""
    # Quartz and EventBridge count weekdays from 1 for Sunday; what has no "?" is Spring's or Argo's, which count as Unix does.
    counted = five[4] if "?" not in five else _shift_days(five[4])
    unix = " ".join(["*" if part == "?" else part for part in (*five[:4], counted)])
    try:
        return what, parse_cron(unix)
    except Refused:
        return what, ""


def _shift_days(text: str) -> str:
    """``2-6`` → ``1-5``: weekdays of Quartz, where 1 is Sunday. A step after / and a place after # are no weekdays."""
    return re.sub(r"(?<![/#\d])[1-7](?!\d)", lambda found: str(int(found[0]) - 1), text)


def _parse_field(text: str, field: Field, all_fields: list[str]) -> str:
    _refuse_signs(text, field, all_fields)
    return ",".join(_parse_term(term, field) for term in text.split(","))


def _refuse_signs(text: str, field: Field, all_fields: list[str]) -> None:
    """The signs of other dialects. Letters of names are let through."""
    minute, hour = all_fields[:2]
    if "?" in text:
        raise Refused(f"? as the {field.name} is Quartz and EventBridge", f'write *: "{" ".join(all_fields).replace("?", "*")}"')
    if "#" in text:
        first = 7 * (int(text[-1]) - 1) + 1 if re.search(r"#[1-4]\Z", text) else None
        days = f"{first}-{first + 6}" if first else "the days of that week"
        raise Refused(
            "# (the nth weekday of a month) is Quartz; Unix cron has no such thing",
            f'write "{minute} {hour} {days} * *" and let the first step go on only on that weekday',
        )
    bare = re.sub("|".join(field.words), "", text.upper()) if field.words else text.upper()
    if "W" in bare:
        raise Refused(
            "W (the nearest working day) is Quartz; Unix cron has no such thing",
            f'write "{minute} {hour} * * 1-5" for every working day',
        )
    if "L" in bare:
        raise Refused(
            "L (the last) is Quartz; Unix cron has no such thing",
            f'write "{minute} {hour} 28-31 * *" and let the first step go on only on the last day',
        )
    if re.search(r"\bH\b", bare):
        raise Refused("H (any value) is Jenkins", "write the number that you mean")
    if "~" in text:
        raise Refused("~ (a random value) is of some crons only", "write the number that you mean")


def _parse_term(text: str, field: Field) -> str:
    span, slash, every = text.partition("/")
    if not span or span.startswith("-") or (slash and not every):
        raise Refused(f"{text!r} is no {field.name}", f"write a number, a range such as 1-5, a list such as 1,3 or */n ({field.name})")
    step = ""
    if slash:
        if not re.fullmatch(r"\d{1,4}", every) or not 0 < int(every) <= field.most - field.least + 1:
            raise Refused(f"/{every} is no step for a {field.name}", f"write */n with n from 1 to {field.most - field.least + 1}")
        step = f"/{int(every)}"
    if span == "*":
        return span + step
    low, dash, high = span.partition("-")
    first = field.number(low)
    if not dash:
        if slash:
            raise Refused(f"{text} has a step without a range", f"write {first}-{field.most}{step}, which is the same")
        return str(first)
    last = field.number(high)
    if field.words == DAYS and last == 0 and first > 0:
        last = 7
    if last < first:
        raise Refused(f"the range {span} ends before it begins", f"write it as two: {first}-{field.most},{field.least}-{last}")
    return f"{first}-{last}{step}"


def _values(text: str, field: Field) -> set[int]:
    found: set[int] = set()
    for term in text.split(","):
        span, _, every = term.partition("/")
        low, _, high = span.partition("-")
        first, last = (field.least, field.most) if span == "*" else (int(low), int(high or low))
        found |= set(range(first, last + 1, int(every or 1)))
    return found


def _refuse_never(fields: Sequence[str]) -> None:
    """``0 0 31 2 *``: no February has that day. With a weekday given as well, cron takes either."""
    if not fields[4].startswith("*"):
        return
    days, months = _values(fields[2], FIELDS[2]), _values(fields[3], FIELDS[3])
    if min(days) > max(calendar.monthrange(2024, month)[1] for month in months):
        raise Refused(
            f"it never fires: no such month has a day {min(days)}", "for the last day, write 28-31 and look at the date in the step"
        )


def in_words(cron: str) -> str:
    """What is common, in words; "" for the rest.

    >>> in_words("0 6 * * 1"), in_words("*/15 * * * *")
    ('every Monday at 06:00', 'every 15 minutes')
    """
    minute, hour, day, month, weekday = cron.split()
    if (hour, day, month, weekday) == ("*", "*", "*", "*"):
        if minute == "*":
            return "every minute"
        if minute.startswith("*/"):
            return f"every {minute[2:]} minutes"
        return f"every hour at minute {minute}" if minute.isdigit() else ""
    if not (minute.isdigit() and hour.isdigit() and month == "*"):
        return ""
    at = f"at {int(hour):02}:{int(minute):02}"
    if (day, weekday) == ("*", "*"):
        return f"every day {at}"
    if day == "*" and re.fullmatch(r"[0-7]", weekday):
        return f"every {calendar.day_name[(int(weekday) - 1) % 7]} {at}"
    if (day, weekday) == ("*", "1-5"):
        return f"Monday to Friday {at}"
    if day.isdigit() and weekday == "*":
        return f"on day {day} of every month {at}"
    return ""


# ---- schedules --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Schedule:
    """`cron`: five fields as of `parse_cron`. `zone`: an IANA name."""

    cron: str
    zone: str = "UTC"

    def __str__(self) -> str:
        words = in_words(self.cron)
        return f"schedule {self.cron} ({self.zone})" + (f": {words}" if words else "")

    @property
    def note(self) -> str:
        """What surprises people."""
        _, _, day, _, weekday = self.cron.split()
        if day.startswith("*") or weekday.startswith("*"):
            return ""
        return "a day of the month and a weekday are both given: cron fires on either, not only where both hold"


def zone_of(name: Any) -> str:
    """An IANA name that this machine knows. Raises Refused."""
    import zoneinfo

    if not isinstance(name, str) or not name:
        raise Refused("not a time zone", 'write an IANA name, such as timezone="Europe/Berlin"')
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        known = zoneinfo.available_timezones()
        if not known:
            raise Refused("this machine has no data of time zones", "install the package tzdata") from None
        by_city = {zone.rpartition("/")[2].lower(): zone for zone in sorted(known)}
        near = by_city.get(name.lower().replace(" ", "_")) or next(iter(difflib.get_close_matches(name, sorted(known), 1)), None)
        hint = f"did you mean {near}? " if near else ""
        raise Refused(f"{name!r} is no time zone", f"{hint}Write an IANA name, such as Europe/Berlin, or UTC") from None
    return name


def next_times(schedule: Schedule, after: datetime, count: int = 3) -> list[datetime]:
    """The next fire times after a time that knows its zone, in the zone of the schedule.

    Where clocks go forward, a time that does not exist fires right after; where they go back, one that comes twice fires once.
    """
    import zoneinfo

    from cronsim import CronSim

    zone: tzinfo = UTC if schedule.zone == "UTC" else zoneinfo.ZoneInfo(schedule.zone)
    return list(itertools.islice(CronSim(schedule.cron, after.astimezone(zone)), count))


def schedule_of(arguments: Mapping[str, Any]) -> tuple[Schedule | None, list[Refused]]:
    """The schedule that the arguments of @schedule give, and all that is wrong with them."""
    wrong: list[Refused] = []
    flags = {name: arguments.get(name) for name in ("weekly", "hourly", "daily")}
    for name, value in flags.items():
        if not (value is None or isinstance(value, bool)):
            wrong.append(Refused(f"{name}={value!r} is not True or False", f"write {name}=True, or cron=…"))
    cron, zone = arguments.get("cron"), "UTC"
    if arguments.get("timezone") is not None:
        zone = _collect(wrong, "timezone", zone_of, arguments["timezone"]) or "UTC"
    chosen = [name for name, value in flags.items() if value is True] + (["cron"] if cron is not None else [])
    if len(chosen) > 1:
        wrong.append(Refused(f"{' and '.join(chosen)} are given together", "keep one of them; a flow has one schedule"))
    elif not chosen and flags["daily"] is False:
        wrong.append(Refused("nothing is scheduled", "write hourly=True, daily=True, weekly=True or cron=…"))
    if cron is not None:
        text = _collect(wrong, "cron", parse_cron, cron)
    else:
        text = WEEKLY if flags["weekly"] else HOURLY if flags["hourly"] else DAILY
    return (Schedule(text, zone) if text and not wrong else None), wrong


def _collect(wrong: list[Refused], name: str, parse: Callable[[Any], str], value: Any) -> str | None:
    try:
        return parse(value)
    except Refused as refused:
        wrong.append(Refused(f"{name}={value!r}: {refused.what}", refused.remedy))
        return None


# ---- triggers ---------------------------------------------------------------------------------------------------------------


Deferred = Callable[[Any], Any]  # a function of the deployment, called with its context


@dataclass(frozen=True)
class Event:
    """A named event. `parameters`: (parameter of the flow, field of the event); None: all that have the same name, if it is the only event."""

    name: str | Deferred
    parameters: tuple[tuple[str, str], ...] | Deferred | None = None

    def __str__(self) -> str:
        if callable(self.name):
            return f"an event that {_name(self.name)} names at deployment"
        if callable(self.parameters):
            return f"event {self.name} with parameters that {_name(self.parameters)} gives at deployment"
        pairs = ", ".join(f"{parameter} = {field}" for parameter, field in self.parameters or ())
        return f"event {self.name}" + (f" with {pairs}" if pairs else "")


@dataclass(frozen=True)
class Reset:
    """When waiting for several events starts anew."""

    cron: str
    zone: str = "UTC"


@dataclass(frozen=True)
class Trigger:
    """All of the events must have come."""

    events: tuple[Event, ...]
    reset: Reset | None = None

    def __str__(self) -> str:
        return " and ".join(map(str, self.events)) + _reset_words(self.reset)


@dataclass(frozen=True)
class Finished:
    """A successful run of a flow; without `project` a flow of the same project and branch."""

    flow: str | Deferred
    project: str | None = None
    branch: str | None = None

    def __str__(self) -> str:
        if callable(self.flow):
            return f"a flow that {_name(self.flow)} names at deployment"
        return "success of " + ".".join(part for part in (self.project, self.branch, self.flow) if part)


@dataclass(frozen=True)
class TriggerOnFinish:
    """All of the flows must have succeeded."""

    flows: tuple[Finished, ...]
    reset: Reset | None = None

    def __str__(self) -> str:
        return " and ".join(map(str, self.flows)) + _reset_words(self.reset)


def _reset_words(reset: Reset | None) -> str:
    return f", all since the last {in_words(reset.cron) or reset.cron} ({reset.zone})" if reset else ""


def _name(function: Deferred) -> str:
    return getattr(function, "__name__", "a function")


def trigger_of(arguments: Mapping[str, Any]) -> tuple[Trigger | None, list[Refused]]:
    """The trigger that the arguments of @trigger give, and all that is wrong with them."""
    wrong: list[Refused] = []
    given = _several(arguments, "event", "events", wrong)
    events = [found for each in given if (found := _event(each, wrong)) is not None]
    _refuse_twice([event.name for event in events], "event", wrong)
    reset = _reset(arguments.get("options"), wrong)
    return (Trigger(tuple(events), reset) if not wrong else None), wrong


def finish_of(arguments: Mapping[str, Any]) -> tuple[TriggerOnFinish | None, list[Refused]]:
    """The trigger that the arguments of @trigger_on_finish give, and all that is wrong with them."""
    wrong: list[Refused] = []
    given = _several(arguments, "flow", "flows", wrong)
    flows = [found for each in given if (found := _finished(each, wrong)) is not None]
    _refuse_twice([(flow.flow, flow.project, flow.branch) for flow in flows], "flow", wrong)
    reset = _reset(arguments.get("options"), wrong)
    return (TriggerOnFinish(tuple(flows), reset) if not wrong else None), wrong


def _several(arguments: Mapping[str, Any], one: str, many: str, wrong: list[Refused]) -> list[Any]:
    single, several = arguments.get(one), arguments.get(many)
    several = None if several in ([], (), None) else several
    if single is not None and several is not None:
        wrong.append(Refused(f"{one} and {many} are both given", f"put all into {many}=[…]"))
        return []
    if single is None and several is None:
        wrong.append(Refused(f"no {one} is named", f'write {one}="NAME" or {many}=["A", "B"]'))
        return []
    if single is not None:
        if isinstance(single, list | tuple):
            wrong.append(Refused(f"{one}={single!r} is a list", f"write {many}=[…]; the flow starts when all have come"))
            return []
        return [single]
    if callable(several):
        return [several]
    if not isinstance(several, list | tuple):
        wrong.append(Refused(f"{many}={several!r} is no list", f'write {many}=["A", "B"], or {one}="A"'))
        return []
    return list(several)


def _event(given: Any, wrong: list[Refused]) -> Event | None:
    if callable(given):
        return Event(given)
    if isinstance(given, str):
        return Event(given) if _named(given, EVENT_NAME, "event", wrong) else None
    if not isinstance(given, Mapping):
        wrong.append(Refused(f"{given!r} names no event", 'write a name, or {"name": NAME, "parameters": {PARAMETER: FIELD}}'))
        return None
    for key in [key for key in given if key not in ("name", "parameters")]:
        wrong.append(Refused(f"{key!r} is not known of an event", 'an event has "name" and "parameters"'))
    name: Any = given.get("name")
    if not callable(name) and not _named(name, EVENT_NAME, "event", wrong):
        return None
    return Event(name, _mapping(given.get("parameters"), wrong))


def _named(name: Any, form: re.Pattern[str], what: str, wrong: list[Refused]) -> bool:
    if isinstance(name, str) and form.match(name):
        return True
    wrong.append(
        Refused(f"{name!r} is not the name of {what}" if name else f"the name of the {what} is missing", "use letters, digits and _ . -")
    )
    return False


def _mapping(given: Any, wrong: list[Refused]) -> tuple[tuple[str, str], ...] | Deferred | None:
    """A dict parameter → field; or a list of names and of pairs (parameter, field)."""
    if given is None:
        return None
    if callable(given):
        found_later: Deferred = given
        return found_later
    pairs: list[Any] = list(given.items()) if isinstance(given, Mapping) else list(given) if isinstance(given, list | tuple) else [None]
    found = [(pair, pair) if isinstance(pair, str) else tuple(pair) if isinstance(pair, list | tuple) else () for pair in pairs]
    if not all(len(pair) == 2 and all(isinstance(part, str) and part for part in pair) for pair in found):
        wrong.append(
            Refused(f"parameters={given!r} cannot be read", 'write {"PARAMETER": "FIELD"}, ["NAME", …] or [("PARAMETER", "FIELD"), …]')
        )
        return None
    twice = _doubles([parameter for parameter, _ in found])
    if twice:
        wrong.append(Refused(f"the parameter {', '.join(twice)} is given twice", "map each parameter from one field"))
    return tuple((parameter, field) for parameter, field in found)


def _finished(given: Any, wrong: list[Refused]) -> Finished | None:
    if isinstance(given, type):
        return Finished(given.__name__)  # the class of a flow
    if callable(given):
        return Finished(given)
    if isinstance(given, Mapping):
        for key in [key for key in given if key not in ("name", "project", "project_branch")]:
            wrong.append(Refused(f"{key!r} is not known of a flow", 'a flow has "name", "project" and "project_branch"'))
        project, branch = given.get("project"), given.get("project_branch")
        if (project is None) != (branch is None):
            wrong.append(Refused('"project" and "project_branch" go together', "give both, or none"))
        name: Any = given.get("name")
        if callable(name) or _named(name, FLOW_PATH, "flow", wrong):
            return Finished(name, project, branch)
        return None
    if not _named(given, FLOW_PATH, "flow", wrong):
        return None
    project, dot, rest = given.partition(".")
    if not dot:
        return Finished(given)
    branch, dot, name = rest.rpartition(".")
    if not dot or not (project and branch and name):
        wrong.append(Refused(f"{given!r} is not the name of a flow", 'write "Flow" or "project.branch.Flow"'))
        return None
    return Finished(name, project, branch)


def _refuse_twice(names: Sequence[Any], what: str, wrong: list[Refused]) -> None:
    for name in _doubles(names):
        shown = ".".join(filter(None, reversed(name))) if isinstance(name, tuple) else name
        wrong.append(Refused(f"the {what} {shown} is named twice", "name it once"))


def _doubles(names: Iterable[Any]) -> list[Any]:
    seen: list[Any] = []
    twice = []
    for name in names:
        if name in seen and name not in twice:
            twice.append(name)
        seen.append(name)
    return twice


def _reset(options: Any, wrong: list[Refused]) -> Reset | None:
    remedy = 'write options={"reset_at": {"cron": "0 0 * * *", "timezone": "UTC"}}'
    if not options:
        return None
    if not isinstance(options, Mapping) or set(options) != {"reset_at"} or not isinstance(options["reset_at"], Mapping):
        wrong.append(Refused(f"options={options!r} cannot be read", remedy))
        return None
    given = options["reset_at"]
    if not set(given) <= {"cron", "timezone"} or "cron" not in given:
        wrong.append(Refused(f"reset_at={given!r} cannot be read", remedy))
        return None
    cron = _collect(wrong, "reset_at cron", parse_cron, given["cron"])
    zone = _collect(wrong, "reset_at timezone", zone_of, given["timezone"]) if given.get("timezone") is not None else "UTC"
    return Reset(cron, zone) if cron and zone else None


# ---- a class ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Starts:
    """All that starts a flow by itself."""

    schedule: Schedule | None = None
    triggers: tuple[Trigger, ...] = ()
    on_finish: tuple[TriggerOnFinish, ...] = ()


_READERS: dict[str, Callable[[Mapping[str, Any]], tuple[Any, list[Refused]]]] = {
    "schedule": schedule_of,
    "trigger": trigger_of,
    "trigger_on_finish": finish_of,
}


def starts_of(cls: type) -> Starts:
    """What starts the flow. A class with a schedule or triggers of its own replaces those of its bases, each kind by itself.

    What is written wrongly is left out; `findings` tells it.
    """
    found = {name: [made for given in _given(cls, name) if (made := reader(given)[0])] for name, reader in _READERS.items()}
    schedules = found["schedule"]
    return Starts(schedules[0] if schedules else None, tuple(found["trigger"]), tuple(found["trigger_on_finish"]))


def _given(cls: type, name: str) -> list[Mapping[str, Any]]:
    """The arguments of the decorators of that name that count: those of the nearest class that has any."""
    marks = next((own for each in cls.__mro__ if (own := [mark for mark in own_marks(each) if mark.name == name])), [])
    found: list[Mapping[str, Any]] = []
    for mark in marks:
        try:
            found.append({key: evaluate(value, cls) for key, value in mark.arguments.items()})
        except DefinitionError:
            continue  # arguments.class_findings tells it
    return found


def findings(cls: type, required: Iterable[str] = (), parameters: Iterable[str] | None = None) -> list[Finding]:
    """All that is wrong with what starts a flow.

    `required` are the parameters without a default, `parameters` all of them (None: not known, then names are not checked).
    """
    wrong = []
    for name, reader in _READERS.items():
        refused = [each for given in _given(cls, name) for each in reader(given)[1]]
        wrong += [Finding(cls.__name__, f"@{name}: {each.what}", each.remedy) for each in refused]
    starts, known = starts_of(cls), None if parameters is None else list(parameters)
    missing = list(required)
    if starts.schedule is not None and missing:
        what = f"@schedule: nobody gives the required {'parameter' if len(missing) == 1 else 'parameters'} {', '.join(missing)}"
        wrong.append(Finding(cls.__name__, what, "give each a default"))
    for trigger in starts.triggers:
        wrong += _check_parameters(cls, trigger, missing, known)
    return wrong + _loops(cls, starts)


def _check_parameters(cls: type, trigger: Trigger, required: Sequence[str], known: Sequence[str] | None) -> list[Finding]:
    mapped = [name for event in trigger.events if isinstance(event.parameters, tuple) for name, _ in event.parameters]
    found = []
    for name in mapped if known is not None else ():
        if name not in (known or ()):
            near = difflib.get_close_matches(name, known or (), 1)
            hint = f"did you mean {near[0]}?" if near else f"parameters: {', '.join(known or ()) or 'none'}"
            found.append(Finding(cls.__name__, f"@trigger: the flow has no parameter {name}", hint))
    by_name = len(trigger.events) == 1 and trigger.events[0].parameters is None
    deferred = any(callable(event.name) or callable(event.parameters) for event in trigger.events)
    missing = [] if by_name or deferred else [name for name in required if name not in mapped]
    if missing:
        what = f"@trigger: no event gives the required {', '.join(missing)}"
        found.append(Finding(cls.__name__, what, 'map a field to it, "parameters": {PARAMETER: FIELD}, or give it a default'))
    return found


def _loops(cls: type, starts: Starts) -> list[Finding]:
    own = [flow for each in starts.on_finish for flow in each.flows if flow.flow == cls.__name__ and flow.project is None]
    what = "@trigger_on_finish: the flow would start itself again and again"
    return [Finding(cls.__name__, what, "name another flow; for repetition use @schedule")] if own else []


def describe(cls: type, now: datetime | None = None) -> list[str]:
    """What would start the flow, a line each; with a time, the next fire times of the schedule, too. Empty: only people start it."""
    starts = starts_of(cls)
    lines = []
    if starts.schedule is not None:
        lines.append(str(starts.schedule))
        lines += [f"  note: {starts.schedule.note}"] if starts.schedule.note else []
        if now is not None:
            times = (time.strftime("%a %Y-%m-%d %H:%M %Z") for time in next_times(starts.schedule, now))
            lines.append(f"  next: {', '.join(times)}")
    return lines + [f"trigger {trigger}" for trigger in starts.triggers] + [f"trigger on finish: {each}" for each in starts.on_finish]
