"""Cron lines that every scheduler here reads alike, and how long they pause.

Two libraries read a line: cronsim in `at run` and in checks, Prefect's copy of croniter on a Prefect server. They
differ in what goes beyond plain cron, and in some corners of plain cron too. What both agree on is taken, all else
refused, and a test holds their slots against each other.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from functools import cache
from itertools import pairwise
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from anomaly_times.durations import EPOCH

__all__ = ["longest_pause", "normal_cron", "pause_before"]

_MOST = 200
_NUMBERS = {
    **{name: i for i, name in enumerate(("sun", "mon", "tue", "wed", "thu", "fri", "sat"))},
    **{
        name: i
        for i, name in enumerate(
            ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"), start=1
        )
    },
}
_VALUE = r"(?:[0-9]{1,2}|[a-z]{3})"
_ITEM = rf"{_VALUE}(?:-{_VALUE}(?:/[0-9]{{1,2}})?)?"
_FIELD = re.compile(rf"\*(?:/[0-9]{{1,2}})?|{_ITEM}(?:,{_ITEM})*")
_RANGE = re.compile(rf"({_VALUE})-({_VALUE})")
_FEBRUARY, _MARCH = 2, 3
_DAYS_IN_MONTH = (0, 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
# Weekdays and leap years come again after 28 years, from 1901 to 2099.
_CYCLE = range(28 * 365 + 7)


def normal_cron(text: str) -> str:
    """The cron line `text` with single spaces: five fields, names of months and days allowed.

    A field is `*`, `*/n`, or a list of values, ranges `a-b` and `a-b/n`; the day of the month may be `L`, its last day.

    Raises:
        ValueError: anything else, a line that never comes, and one that Prefect would read otherwise.
    """
    fields = text.lower().split() if len(text) <= _MOST else []
    if len(fields) != 5:
        raise ValueError("must have five fields: minute, hour, day of month, month, day of week")
    for i, field in enumerate(fields):
        if not (_FIELD.fullmatch(field) or (i == 2 and field == "l")):
            raise ValueError(f"{field[:64]!r} is not understood: write *, */n, or a list of values, a-b and a-b/n")
        if any(_number(low) >= _number(high) for low, high in _RANGE.findall(field)):
            raise ValueError(f"{field[:64]!r} has a range that does not rise")
    try:
        parsed = CronSim(text, EPOCH)
        next(parsed)
    except (CronSimError, StopIteration) as exc:
        raise ValueError(f"{text[:64]!r} is no cron line, or never comes") from exc
    _refuse_ambiguous(fields[2], fields[4], parsed)
    return " ".join(text.split())


def _number(value: str) -> int:
    return int(value) if value.isdigit() else _NUMBERS.get(value, -1)


def _refuse_ambiguous(day: str, weekday: str, parsed: CronSim) -> None:
    """Nothing for days on which both libraries agree, else a ValueError."""
    if day != "*" and weekday != "*":
        if "*" in day + weekday:
            raise ValueError(
                "a `*/n` beside the other day field means both days to some schedulers and either to others: "
                "write its days out, or leave one of the two fields `*`"
            )
        if min(parsed.days) > max(_DAYS_IN_MONTH[month] for month in parsed.months):
            raise ValueError(f"the day of month {day!r} never comes")
    # From the end of February croniter goes to the next larger day of the list, 30 or 31, which is 1, 2 or 3 March;
    # earlier days of March are lost.
    beyond = min((each for each in (29, 30, 31) if each in parsed.days), default=0)
    lost = [each for each in (1, 2) if each in parsed.days and each < beyond - 28]
    if lost and {_FEBRUARY, _MARCH} <= set(parsed.months):
        raise ValueError(
            f"Prefect leaves out {lost[0]} March for a day of month {day!r}, which goes on past the end of February: "
            "let it end with the 28th, like 1-28/5"
        )


@cache
def longest_pause(cron: str) -> timedelta:
    """The longest time between two slots of a line from `normal_cron`, by the wall clock."""
    parsed = CronSim(cron, EPOCH)
    times = sorted(timedelta(hours=hour, minutes=minute) for hour in parsed.hours for minute in parsed.minutes)
    first = EPOCH.date()
    every = (first + timedelta(days=n) for n in _CYCLE)
    days = [day for day in every if day.month in parsed.months and parsed.match_day(day)]
    days.append(days[0] + timedelta(days=len(_CYCLE)))
    over_days = max(later - earlier for earlier, later in pairwise(days)) + times[0] - times[-1]
    return max([over_days, *(later - earlier for earlier, later in pairwise(times))])


def pause_before(cron: str, at: datetime, *, timezone: str) -> timedelta:
    """The time between the last two slots of a line from `normal_cron` up to `at`; the line is in `timezone`."""
    # Backwards it gives what lies before a time.
    begin = at + timedelta(microseconds=1)
    slots = CronSim(cron, begin.astimezone(ZoneInfo(timezone)), reverse=True)
    last, other = (next(slots).astimezone(EPOCH.tzinfo) for _ in range(2))
    return last - other
