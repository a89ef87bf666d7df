"""Which of a server's metrics are worth a first look."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import numpy as np

from anomaly_times.conventions import name_for_query
from anomaly_times.durations import parse_duration
from anomaly_times.errors import NoSeriesError, QueryError
from anomaly_times.mission import Mission
from anomaly_times.panel import Floats, Grid, Labels, Panel
from anomaly_times.stores import Store

__all__ = ["candidates", "liveliness", "pick_lively"]

STEP = parse_duration("5m")
_COUNTER = re.compile(r".+_(total|count|sum)")
_DULL = re.compile(
    r".+_(bucket|created|info)|(scrape|go|process|python|promhttp|ALERTS).*|up|.*(timestamp|start_time|build|version).*"
    r"|anomaly_.*"  # our own
)
_TELLING = ("job", "service", "app", "namespace", "instance", "host", "pod")
"""Labels by which people look at metrics, the usual first."""
_MOST_LOOKED_AT = 2000
"""Series of a metric whose labels are looked at."""


def pick_lively(
    store: Store,
    names: Sequence[str],
    *,
    now: datetime,
    every: timedelta,
    n: int = 6,
    most_series: int = 12,
    on_done: Callable[[], None] = lambda: None,
) -> list[Mission]:
    """Missions for the `n` liveliest of some metrics, at most one for each family (`node_`, `http_`, …) at first.

    Counters are watched as rates; both by a label that tells their series apart, `job` where it does. A metric without
    values in half of the last two days, or with a value that hardly moves, is never taken.

    Args:
        store: read only.
        names: metrics to try, see `candidates`.
        now: end of the two days that are looked at.
        every: how often the missions are to be forecast; so far they reach.
        n: how many missions at most.
        most_series: a query that answers more is passed over.
        on_done: called after each name.

    Raises:
        StoreError: the server is away or refuses.
    """
    looked: list[tuple[float, str, Mission]] = []
    for name in names:
        try:
            promql = _query(store, name, now=now, most_series=most_series)
            spec = {"name": name_for_query("", promql), "promql": promql, "step": STEP, "max_series": most_series}
            mission = Mission.model_validate({**spec, "forecast": {"every": every, "horizon": every}})
            score = liveliness(store.read(promql, mission.detect_grid(now, timedelta(days=2)), max_series=most_series))
        except QueryError:
            continue  # matches nothing lately, or too much
        finally:
            on_done()
        if score > 0:
            looked.append((score, name.split("_", 1)[0], mission))
    looked.sort(key=lambda item: -item[0])
    families: set[str] = set()
    first: list[Mission] = []
    rest: list[Mission] = []
    for _, family, mission in looked:
        (rest if family in families else first).append(mission)
        families.add(family)
    return (first + rest)[:n]


def _query(store: Store, name: str, *, now: datetime, most_series: int) -> str:
    """A query that answers up to `most_series` series of a metric, each for a value of a label that is there.

    Raises:
        NoSeriesError: the metric has no value in the last hour.
    """
    labels: Sequence[Labels] = ()
    try:
        labels = store.read(name, Grid.ending(now, STEP, 12), max_series=_MOST_LOOKED_AT).labels
    except NoSeriesError:
        raise
    except QueryError:
        pass  # far too many to look at: all of them together
    by = _telling_label(labels, most_series)
    grouped = f" by ({by}) " if by else ""
    return f"sum{grouped}(rate({name}[10m]))" if _COUNTER.fullmatch(name) else f"avg{grouped}({name})"


def _telling_label(series: Sequence[Labels], most: int) -> str:
    """The label by which to look at `series`: all have it, with `most` values at most; empty where there is none."""
    values: dict[str, set[str]] = {}
    for row in series:
        for name, value in row.without(["__name__"]):
            values.setdefault(name, set()).add(value)
    shared = frozenset.intersection(*(frozenset(name for name, _ in row) for row in series)) if series else frozenset()
    counts = {name: len(found) for name, found in values.items() if len(found) <= most and name in shared}

    def rank(name: str) -> tuple[bool, int, int, str]:
        usual = _TELLING.index(name) if name in _TELLING else len(_TELLING)
        return counts[name] < 2, usual, -counts[name], name

    return min(counts, key=rank, default="")


def candidates(names: Sequence[str], most: int = 60) -> list[str]:
    """Up to `most` of a server's metric names to look at, spread evenly over what is not dull by its name."""
    wanted = sorted(name for name in names if not _DULL.fullmatch(name) and re.fullmatch(r"[a-zA-Z_:][\w:]*", name))
    if len(wanted) <= most:
        return wanted
    return [wanted[i] for i in np.linspace(0, len(wanted) - 1, most).astype(int)]


def liveliness(panel: Panel) -> float:
    """How much there is to see, 0 to 1: the best row's share of variance that one point tells of the next.

    Noise and flat lines have nearly none, a daily rhythm has nearly all. 0 where every row lacks half of its points,
    has fewer than 12 values, or moves by less than a hundredth of its size.
    """
    return max((_row_liveliness(row) for row in panel.y), default=0.0)


def _row_liveliness(y: Floats) -> float:
    known = y[np.isfinite(y)]
    if 2 * len(known) < len(y) or len(np.unique(known)) < 12:
        return 0.0
    spread = known.std()
    if not np.isfinite(spread) or spread < 0.01 * abs(known.mean()) or spread == 0:
        return 0.0
    centred = (y - known.mean()) / spread
    return min(1.0, max(0.0, float(np.nanmean(centred[1:] * centred[:-1]))))
