"""How missions are: when each was scored last, how far its forecasts reach, how its runs ended.

What the stores hold is what counts: it is the same however missions are scheduled. Few queries, each for many missions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

import numpy as np

from anomaly_times.durations import parse_duration
from anomaly_times.errors import AnomalyTimesError
from anomaly_times.mission import Mission
from anomaly_times.panel import Floats, Grid
from anomaly_times.stores import Store

__all__ = ["CADENCES", "Health", "State", "read_health"]

State = Literal["ok", "late", "unforecast", "unscored", "error"]

CADENCES = 3
"""A mission whose newest score is that many cadences old is late."""

_WINDOWS = (parse_duration("1h"), parse_duration("1d"))
"""How far back scores are looked for where the last cadences hold none."""
_MOST_STEPS = 2_000


@dataclass(frozen=True)
class Health:
    """How one mission is.

    `scored` is the time of its newest score, `None` where there is none in the last day (or in the last 2,000 steps);
    `lag` how far that is behind what could be scored; `covered` the last time that a stored forecast is for, `None`
    where none is for the time to come. `error` is what prevented looking.
    """

    mission: Mission
    scored: datetime | None = None
    lag: timedelta | None = None
    covered: datetime | None = None
    error: AnomalyTimesError | None = None

    @property
    def state(self) -> State:
        """What is the matter, the most telling first."""
        if self.error is not None:
            return "error"
        if self.covered is None:
            return "unforecast"
        if self.lag is None:
            return "unscored"
        allowed = CADENCES * max(self.mission.detect.period, self.mission.step)
        return "late" if self.lag > allowed else "ok"


def read_health(
    missions: Sequence[Mission],
    stores: Mapping[str, Store],
    *,
    now: datetime,
    refused: Mapping[str, AnomalyTimesError] | None = None,
) -> list[Health]:
    """How missions are, in their order; a store that is away is the error of its missions.

    Args:
        missions: any number.
        stores: by the source that missions name.
        now: with a time zone.
        refused: by source, why there is no store of it.
    """
    groups: dict[tuple[str, timedelta, timedelta], list[Mission]] = defaultdict(list)
    for mission in missions:
        groups[mission.source, mission.step, mission.offset].append(mission)
    found: dict[str, Health] = {}
    for (source, _, _), group in groups.items():
        last = group[0].last_time(now)
        if refused is not None and (error := refused.get(source)) is not None:
            found |= {mission.name: Health(mission, error=error) for mission in group}
            continue
        try:
            scored = _scored(group, stores[source], now)
            covered = _covered(group, stores[source], now)
        except AnomalyTimesError as exc:
            found |= {mission.name: Health(mission, error=exc) for mission in group}
            continue
        for mission in group:
            newest = scored.get(mission.name)
            lag = last - newest if newest is not None else None
            found[mission.name] = Health(mission, newest, lag, covered.get(mission.name))
    return [found[mission.name] for mission in missions]


def _scored(group: Sequence[Mission], store: Store, now: datetime) -> dict[str, datetime]:
    """The time of each mission's newest score, looked for further and further back."""
    first = group[0]
    recent = CADENCES * max(max(mission.detect.period for mission in group), first.step)
    newest: dict[str, datetime] = {}
    for window in sorted({recent, *(window for window in _WINDOWS if window > recent)}):
        waiting = [mission for mission in group if mission.name not in newest]
        if not waiting:
            break
        grid = first.detect_grid(now, min(window, _MOST_STEPS * first.step))
        for name, panel in store.read_scores(waiting, grid).items():
            at = _last_time(panel.y, grid)
            if at is not None:
                newest[name] = at
    return newest


def _covered(group: Sequence[Mission], store: Store, now: datetime) -> dict[str, datetime]:
    """The last time that a forecast of each mission is for, among those past what can be scored."""
    first = group[0]
    ahead = min(_MOST_STEPS, max(mission.h for mission in group))
    grid = Grid(first.last_time(now) + first.step, first.step, ahead)
    reach = {name: _last_time(found.yhat, grid) for name, found in store.read_forecasts(group, grid).items()}
    return {name: at for name, at in reach.items() if at is not None}


def _last_time(y: Floats, grid: Grid) -> datetime | None:
    known = np.flatnonzero(np.isfinite(y).any(axis=0))
    return grid.start + int(known[-1]) * grid.step if known.size else None
