"""Cron lines: what is taken means the same in `at run` and on a Prefect server."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import islice

import pytest
from cronsim import CronSim
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from anomaly_times.cron import longest_pause, normal_cron, pause_before
from anomaly_times.durations import EPOCH

DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
BOUNDS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))


def spelling(i: int, value: int) -> st.SearchStrategy[str]:
    names = MONTHS[value - 1 : value] if i == 3 else DAYS[value : value + 1] if i == 4 else ()
    return st.sampled_from([str(value), f"{value:02}", *names, *(name.upper() for name in names)])


def field(i: int) -> st.SearchStrategy[str]:
    """One field of a line, taken or not."""
    low, high = BOUNDS[i]
    value = st.integers(low, high).flatmap(lambda number: spelling(i, number))
    step = st.sampled_from([1, 2, 3, 5, 7, 10, 15, 30, 31, 60, 99])
    span = st.builds("{}-{}".format, value, value)
    item = value | span | st.builds("{}/{}".format, span | value, step)
    lists = st.lists(item, min_size=1, max_size=3).map(",".join)
    odd = st.sampled_from(["L", "l", "LW", "5L", "1#2", "?"])
    return st.just("*") | st.just("*") | st.just("*") | value | st.builds("*/{}".format, step) | lists | odd


def in_prefect(cron: str, n: int) -> list[datetime]:
    """The first slots of a line on a Prefect server, as its schedules compute them."""
    from prefect._internal.schemas.validators import validate_cron_string
    from prefect._vendor.croniter import croniter

    slots = croniter(validate_cron_string(cron), EPOCH.replace(tzinfo=None))
    return [slots.get_next(datetime) for _ in range(n)]


def here(cron: str, n: int) -> list[datetime]:
    return [slot.replace(tzinfo=None) for slot in islice(CronSim(cron, EPOCH), n)]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(st.tuples(*(field(i) for i in range(5))).map(" ".join))
def test_what_is_taken_has_the_same_slots_in_both_schedulers(text: str) -> None:
    try:
        cron = normal_cron(text)
    except ValueError:
        assume(False)
    assert in_prefect(cron, 50) == here(cron, 50)


@pytest.mark.parametrize(
    "cron",
    [
        "0 * * * *",
        "*/5 8-18 * * mon-fri",
        "0 0 1 * *",
        "0 0 L * *",
        "0 0 L * mon",
        "0 0 1,15 * 1",
        "0 0 1-28/5 * *",
        "0 0 */7 * *",
        "0 0 * * 7",
        "30 6 * JAN-MAR Sun",
        "0 0 29 feb *",
    ],
)
def test_usual_lines_are_taken_and_agree_over_years(cron: str) -> None:
    assert in_prefect(normal_cron(cron), 400) == here(cron, 400)


@pytest.mark.parametrize(
    ("cron", "words"),
    [
        ("0 0 LW * *", "'lw' is not understood"),
        ("0 0 * * 5L", "'5l' is not understood"),
        ("0 0 * * 1#2", "'1#2' is not understood"),
        ("0 0 1,L * *", "'1,l' is not understood"),
        ("59/7 * * * *", "'59/7' is not understood"),
        ("0 0 *,1 * *", "'*,1' is not understood"),
        ("0 0 ? * *", "'?' is not understood"),
        ("0 0 * * R", "'r' is not understood"),
        ("٠ 0 * * *", "is not understood"),
        ("0 0 */2 * 1", "both days to some schedulers and either to others"),
        ("0 0 1 * */2", "both days to some schedulers and either to others"),
        ("0 0 * * 7-7", "does not rise"),
        ("0 0 * * fri-mon", "does not rise"),
        ("0 0 31 4 thu", "never comes"),
        ("0 0 31 feb *", "never comes"),
        ("0 0 * * tue-foo", "does not rise"),
        ("0 0 * * foo", "no cron line"),
        ("0 0 */5 * *", "leaves out 1 March"),
        ("0 0 2,31 * *", "leaves out 2 March"),
        ("0 0 0 * * *", "five fields"),
        ("0 " * 500, "five fields"),
    ],
)
def test_what_schedulers_read_otherwise_is_refused(cron: str, words: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        normal_cron(cron)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("cron", "pause"),
    [
        ("* * * * *", timedelta(minutes=1)),
        ("*/25 * * * *", timedelta(minutes=25)),
        ("0 8-18 * * *", timedelta(hours=14)),
        ("* 8-20 * * 1-5", timedelta(days=2, hours=11, minutes=1)),
        ("0 0 L * *", timedelta(days=31)),
        ("0 0 29 2 *", timedelta(days=4 * 365 + 1)),
        ("0 6,7 1 1 *", timedelta(days=366) - timedelta(hours=1)),
    ],
)
def test_the_longest_pause_is_found_however_rarely_it_comes(cron: str, pause: timedelta) -> None:
    assert longest_pause(cron) == pause


@pytest.mark.parametrize(
    ("at", "hours"),
    [
        # A Tuesday, and a Monday after the clocks went forward.
        ("2026-03-31T06:00:00+00:00", 24),
        ("2026-03-30T06:00:20+00:00", 71),
        ("2026-03-30T05:59:59+00:00", 24),
        ("2026-03-29T12:00:00+00:00", 24),
    ],
)
def test_the_time_between_the_last_two_slots_is_by_the_clocks_of_the_time_zone(at: str, hours: int) -> None:
    found = pause_before("0 8 * * mon-fri", datetime.fromisoformat(at), timezone="Europe/Berlin")
    assert found == timedelta(hours=hours)
