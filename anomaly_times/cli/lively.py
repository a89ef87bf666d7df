"""Which of a server's metrics are worth a first look."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import numpy as np

from anomaly_times.conventions import FORECAST_METRICS, SCORE, name_for_query
from anomaly_times.durations import parse_duration
from anomaly_times.errors import QueryError
from anomaly_times.mission import Mission
from anomaly_times.panel import Floats, Panel
from anomaly_times.stores import Store

__all__ = ["candidates", "liveliness", "pick_lively"]

STEP = parse_duration("5m")
_COUNTER = re.compile(r".+_(total|count|sum)")
_DULL = re.compile(
    r".+_(bucket|created|info)|(scrape|go|process|python|promhttp|ALERTS).*|up|.*(timestamp|start_time|build|version).*"
)


def pick_lively(
    store: Store,
    names: Sequence[str],
    *,
    now: datetime,
    n: int = 6,
    most_series: int = 12,
    on_done: Callable[[], None] = lambda: None,
) -> list[Mission]:
    """Missions for the `n` liveliest of some metrics, at most one for each family (`node_`, `http_`, …) at first.

    Counters are watched as rates, both by `job`. A metric without values in half of the last two days, or with a
    value that hardly moves, is never taken.

    Args:
        store: read only.
        names: metrics to try, see `candidates`.
        now: end of the two days that are looked at.
        n: how many missions at most.
        most_series: a query that answers more is passed over.
        on_done: called after each name.

    Raises:
        StoreError: the server is away or refuses.
    """
    looked: list[tuple[float, str, Mission]] = []
    for name in names:
        promql = f"sum by (job) (rate({name}[10m]))" if _COUNTER.fullmatch(name) else f"avg by (job) ({name})"
        mission = Mission.model_validate(
            {"name": name_for_query("", promql), "promql": promql, "step": STEP, "max_series": most_series}
        )
        try:
            score = liveliness(store.read(promql, mission.detect_grid(now, timedelta(days=2)), max_series=most_series))
        except QueryError:
            score = 0.0  # matches nothing lately, or too much
        if score > 0:
            looked.append((score, name.split("_", 1)[0], mission))
        on_done()
    looked.sort(key=lambda item: -item[0])
    families: set[str] = set()
    first: list[Mission] = []
    rest: list[Mission] = []
    for _, family, mission in looked:
        (rest if family in families else first).append(mission)
        families.add(family)
    return (first + rest)[:n]


def candidates(names: Sequence[str], most: int = 60) -> list[str]:
    """Up to `most` of a server's metric names to look at, spread evenly over what is not dull by its name."""
    wanted = sorted(
        name
        for name in names
        if not _DULL.fullmatch(name)
        and name not in (*FORECAST_METRICS, SCORE)
        and re.fullmatch(r"[a-zA-Z_:][\w:]*", name)
    )
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
