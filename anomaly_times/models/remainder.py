"""What the seasons leave of a series, for models that know no seasons, or none as long as a day of short steps."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import numpy.typing as npt

from anomaly_times.models.season import Cycles, believed, candidate_periods, fit_season
from anomaly_times.panel import Floats, Panel

__all__ = ["Remainder", "without_seasons"]


@dataclass(frozen=True)
class Remainder:
    """A history taken apart: `rest + profile` is the history, and `rest`'s forecast plus `ahead` is its forecast.

    `rest` (float64[S, T]) has gaps where the history has some; `profile` (float64[S, T]) and `ahead` (float64[S, h])
    have none. `periods` are the seasons that were looked for, in steps, and `follows` (bool[S, len(periods)]) says
    which of them a series was found to follow.
    """

    rest: Floats
    profile: Floats
    ahead: Floats
    periods: tuple[int, ...]
    follows: npt.NDArray[np.bool_]

    def lengths(self, row: int) -> list[int]:
        """The seasons of one series, in steps, shortest first."""
        return [period for period, follows in zip(self.periods, self.follows[row], strict=True) if follows]


def without_seasons(history: Panel, h: int, season: tuple[timedelta, ...] | None, timezone: str) -> Remainder:
    """Take the robust seasonal profiles that `profile` uses off every series of `history`.

    Args:
        history: rows of about the same age; a much younger one belongs in a panel of its own.
        h: for how many points ahead the profiles are wanted.
        season: the periods; `None` tries hour, day and week and keeps what the data support.
        timezone: IANA name of the clock that slots begin by.
    """
    rest, profile, ahead = history.y, np.zeros(history.y.shape), np.zeros((history.n_series, h))
    periods = candidate_periods(history.grid, season)
    follows = np.zeros((history.n_series, len(periods)), dtype=bool)
    for i, period in enumerate(periods):
        cycles = Cycles.of(history.grid, h, period, timezone)
        found = fit_season(rest, cycles, history.grid.step)
        follows[:, i] = (found.n >= 2) & (believed(found) if season is None else True)
        own = np.where(follows[:, i, None], found.profile, 0.0)
        rest, profile, ahead = rest - own[:, cycles.slot], profile + own[:, cycles.slot], ahead + own[:, cycles.ahead]
    return Remainder(rest, profile, ahead, tuple(round(p / history.grid.step) for p in periods), follows)
