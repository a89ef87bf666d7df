"""`ets`, `theta` and `mstl` from Nixtla's statsforecast, series by series.

statsforecast takes values, not times: a missing row would shift the phase of every later one, and a gap is an error.
So gaps are filled here, along the seasonal profile, and results are put back on our grid. Its ETS leaves out any season
longer than 24 steps without a word, so for `ets` and `theta` seasons are taken off first, by the robust profile that
`profile` uses (local time, several periods), and added again afterwards; `mstl` finds its seasons in positions.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, validate_call

from anomaly_times.models.profile import Profile
from anomaly_times.models.remainder import without_seasons
from anomaly_times.panel import Floats, Panel, Quantiles

__all__ = ["StatsForecast", "ets", "mstl", "theta"]

_RECENT = 2_000
_FEWEST = 10


@dataclass(frozen=True, kw_only=True)
class StatsForecast:
    """One of statsforecast's models as a `Forecaster`; build it with `ets`, `theta` or `mstl`.

    A series that it fails on, or with fewer than ten points, is forecast by `profile` instead, with a note.
    """

    slow: ClassVar[bool] = True

    kind: Literal["ets", "theta", "mstl"]
    variant: str = ""
    season: tuple[timedelta, ...] | None = None
    timezone: str = "UTC"

    def forecast(self, history: Panel, *, h: int, quantiles: Sequence[float]) -> Quantiles:
        """Quantiles of the next `h` points; see `Forecaster.forecast`."""
        fallback = Profile(season=self.season, timezone=self.timezone)
        values = np.full((history.n_series, h, len(quantiles)), np.nan)
        notes: dict[int, str] = {}
        for i, row in enumerate(history.y):
            there = np.flatnonzero(np.isfinite(row))
            if not there.size:
                continue
            own = history.rows([i]).columns(slice(int(there[0]), None))
            reason = f"only {there.size} points" if there.size < _FEWEST else ""
            if not reason:
                try:
                    values[i] = self._one(own, h, quantiles)
                except Exception as exc:  # noqa: BLE001 - whatever a fit dies of, the other series go on
                    reason = f"{type(exc).__name__}: {exc}"[:120]
            if reason:
                answer = fallback.forecast(own, h=h, quantiles=quantiles)
                values[i] = answer.values[0]
                notes[i] = f"profile instead of {self.kind} ({reason})"
        return Quantiles(history.labels, history.grid.following(h), tuple(quantiles), values, notes)

    def _one(self, own: Panel, h: int, quantiles: Sequence[float]) -> Floats:
        parts = without_seasons(own, h, self.season, self.timezone)
        rest, profile, ahead, seasons = parts.rest[0], parts.profile[0], parts.ahead[0], parts.lengths(0)
        time = np.arange(own.grid.n)
        known = np.isfinite(rest)
        filled = np.interp(time, time[known], rest[known])
        if self.kind == "mstl":
            filled, ahead = filled + profile, np.zeros(h)
        else:
            filled = filled[-_RECENT:]
        # Squares of very large and very small values leave the range of doubles.
        center = float(np.median(filled))
        scale = float(np.abs(filled - center).max())
        if scale == 0.0:
            return np.asarray(np.broadcast_to((center + ahead)[:, None], (h, len(quantiles))))
        unit = (filled - center) / scale
        sides = sorted({abs(2 * q - 1) * 100 for q in quantiles if abs(q - 0.5) > 1e-9})
        # numba and statsforecast warn of their own affairs: caches, divisions that they handle.
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            answer = self._model(seasons).forecast(unit, h=h, level=sides or [50.0])
        columns = [_column(answer, q, sides) for q in quantiles]
        out = np.maximum.accumulate(np.stack(columns, axis=1).astype(np.float64), axis=1)
        if not np.isfinite(out).all():
            raise FloatingPointError("the fit gave no finite forecast")
        return np.asarray(out * scale + (center + ahead)[:, None])

    def _model(self, seasons: list[int]) -> Any:
        from statsforecast import models

        if self.kind == "ets":
            return models.AutoETS(model=self.variant)
        if self.kind == "theta":
            return getattr(models, self.variant)()
        trend = models.AutoETS(model="ZZN")
        return models.MSTL(season_length=seasons, trend_forecaster=trend) if seasons else trend


def _column(answer: dict[str, Any], q: float, sides: list[float]) -> Floats:
    """Quantile `q` out of a statsforecast answer, which holds a mean and bounds by level in per cent."""
    if abs(q - 0.5) <= 1e-9:
        return np.asarray(answer["mean"])
    level = min(sides, key=lambda side: abs(side - abs(2 * q - 1) * 100))
    return np.asarray(answer[f"{'lo' if q < 0.5 else 'hi'}-{level}"])


Season = tuple[timedelta, ...] | None


@validate_call
def ets(
    *, season: Season = None, timezone: str = "UTC", model: Annotated[str, Field(pattern="^[AMZ][ANMZ]N$")] = "ZZN"
) -> StatsForecast:
    """Exponential smoothing of what the seasons leave; `model` is error, trend and season as `AutoETS` spells them."""
    return _build("ets", model, season, timezone)


@validate_call
def theta(
    *,
    season: Season = None,
    timezone: str = "UTC",
    model: Literal["Theta", "OptimizedTheta", "DynamicTheta", "DynamicOptimizedTheta", "AutoTheta"] = "OptimizedTheta",
) -> StatsForecast:
    """The Theta method on what the seasons leave; `model` names the variant as statsforecast does."""
    return _build("theta", model, season, timezone)


@validate_call
def mstl(*, season: Season = None, timezone: str = "UTC") -> StatsForecast:
    """Seasons by iterated LOESS (MSTL), the rest by ETS."""
    return _build("mstl", "", season, timezone)


def _build(kind: Literal["ets", "theta", "mstl"], variant: str, season: Season, timezone: str) -> StatsForecast:
    # Importing it takes seconds, so until there is something to forecast it is only looked for.
    if find_spec("statsforecast") is None:
        raise ModuleNotFoundError("statsforecast is not installed")
    return StatsForecast(kind=kind, variant=variant, season=season, timezone=timezone)
