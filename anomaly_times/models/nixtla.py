"""`ets`, `theta`, `arima`, `ces`, `holt_winters` and `mstl` from Nixtla's statsforecast, series by series.

statsforecast takes values, not times: a missing row would shift the phase of every later one, and a gap is an error.
So gaps are filled here, along the seasonal profile, and results are put back on our grid.

Its ETS leaves out any season longer than 24 steps without a word, and its ARIMA needs minutes for a series with a
season of 24, so seasons are taken off first, by the robust profile that `profile` uses (local time, several periods),
and added again afterwards. `holt_winters` keeps a season of up to 24 steps for itself, `arima` and `ces` keep the
shortest one where they are asked to, and `mstl` takes them all; these count positions. What that costs is measured:
see `models/cost.py`.
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

from anomaly_times.models.profile import INSTEAD, Profile
from anomaly_times.models.remainder import without_seasons
from anomaly_times.panel import Floats, Panel, Quantiles

__all__ = ["ETS_SEASON", "RECENT", "StatsForecast", "arima", "ces", "ets", "holt_winters", "mstl", "theta"]

RECENT = 2_000
"""So many of the newest points are fitted, or two cycles of a season that the model keeps; `mstl` takes all."""

ETS_SEASON = 24
"""statsforecast's exponential smoothing leaves out any season longer than that."""

_FEWEST = 10

Kind = Literal["ets", "theta", "mstl", "arima", "ces", "holt_winters"]
Seasonal = Literal["profile", "native"]


@dataclass(frozen=True, kw_only=True)
class StatsForecast:
    """One of statsforecast's models as a `Forecaster`; build it with the function of its name.

    A series that it fails on, or with fewer than ten points, is forecast by `profile` instead, with a note.
    """

    slow: ClassVar[bool] = True

    kind: Kind
    variant: str = ""
    options: tuple[tuple[str, int | bool], ...] = ()
    seasonal: Seasonal = "profile"
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
                notes[i] = f"{INSTEAD} {self.kind} ({reason})"
        return Quantiles(history.labels, history.grid.following(h), tuple(quantiles), values, notes)

    def _one(self, own: Panel, h: int, quantiles: Sequence[float]) -> Floats:
        parts = without_seasons(own, h, self.season, self.timezone)
        kept = self._kept(parts.lengths(0))
        profile = parts.profile[0]
        if kept:
            others = tuple(n * own.grid.step for n in parts.lengths(0) if n not in kept)
            parts = without_seasons(own, h, others, self.timezone)
        rest, ahead = parts.rest[0], parts.ahead[0]
        # Gaps are filled in what all seasons leave, so that they lie on the profile.
        own_season = profile - parts.profile[0]
        time = np.arange(own.grid.n)
        known = np.isfinite(rest)
        filled = np.interp(time, time[known], (rest - own_season)[known]) + own_season
        if self.kind != "mstl":
            filled = filled[-max(RECENT, 2 * max(kept, default=0)) :]
        # Squares of very large and very small values leave the range of doubles.
        center = 0.0 if self._multiplies else float(np.median(filled))
        scale = float(np.abs(filled - center).max())
        if np.ptp(filled) == 0.0:
            return np.asarray(np.broadcast_to((filled[-1] + ahead)[:, None], (h, len(quantiles))))
        if self._multiplies and filled.min() <= 0:
            raise ValueError("a multiplicative model, and values of 0 or below")
        unit = (filled - center) / scale
        sides = sorted({abs(2 * q - 1) * 100 for q in quantiles if abs(q - 0.5) > 1e-9})
        # numba and statsforecast warn of their own affairs: caches, divisions that they handle.
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            answer = self._model(kept).forecast(unit, h=h, level=sides or [50.0])
        columns = [_column(answer, q, sides) for q in quantiles]
        out = np.maximum.accumulate(np.stack(columns, axis=1).astype(np.float64), axis=1)
        if not np.isfinite(out).all():
            raise FloatingPointError("the fit gave no finite forecast")
        return np.asarray(out * scale + (center + ahead)[:, None])

    def _kept(self, lengths: list[int]) -> list[int]:
        """The seasons (in steps, shortest first) that are left to the model itself."""
        if self.kind == "mstl":
            return lengths
        if self.kind == "holt_winters":
            return [n for n in lengths if n <= ETS_SEASON][-1:]
        return lengths[:1] if self.seasonal == "native" else []

    @property
    def _multiplies(self) -> bool:
        """Whether errors or trend are factors, which makes sense for values above 0 only."""
        return self.kind in ("ets", "holt_winters") and "M" in self.variant

    def _model(self, seasons: list[int]) -> Any:
        from statsforecast import models

        first = seasons[0] if seasons else 1
        options: dict[str, Any] = dict(self.options)
        match self.kind:
            case "ets":
                return models.AutoETS(model=self.variant)
            case "theta":
                return getattr(models, self.variant)()
            case "arima":
                return models.AutoARIMA(season_length=first, **options)
            case "ces":
                return models.AutoCES(season_length=first, model=self.variant if seasons else "N")
            case "holt_winters":
                # Without a season this is Holt's method.
                form = f"{self.variant}A{self.variant if seasons else 'N'}"
                return models.AutoETS(season_length=first, model=form)
            case "mstl":
                trend = models.AutoETS(model="ZZN")
                return models.MSTL(season_length=seasons, trend_forecaster=trend) if seasons else trend


def _column(answer: dict[str, Any], q: float, sides: list[float]) -> Floats:
    """Quantile `q` out of a statsforecast answer, which holds a mean and bounds by level in per cent."""
    if abs(q - 0.5) <= 1e-9:
        return np.asarray(answer["mean"])
    level = min(sides, key=lambda side: abs(side - abs(2 * q - 1) * 100))
    return np.asarray(answer[f"{'lo' if q < 0.5 else 'hi'}-{level}"])


Season = tuple[timedelta, ...] | None
Order = Annotated[int, Field(ge=0, le=20)]


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
def arima(
    *,
    season: Season = None,
    timezone: str = "UTC",
    seasonal: Seasonal = "profile",
    max_p: Order = 5,
    max_q: Order = 5,
    max_d: Annotated[int, Field(ge=0, le=2)] = 2,
    stepwise: bool = True,
) -> StatsForecast:
    """ARIMA of what the seasons leave, its orders chosen by AICc; `seasonal="native"` fits seasonal orders, slowly."""
    options: tuple[tuple[str, int | bool], ...] = (
        ("max_p", max_p),
        ("max_q", max_q),
        ("max_d", max_d),
        ("stepwise", stepwise),
    )
    return _build("arima", "", season, timezone, seasonal=seasonal, options=options)


@validate_call
def ces(
    *,
    season: Season = None,
    timezone: str = "UTC",
    seasonal: Seasonal = "profile",
    model: Literal["Z", "N", "S", "P", "F"] = "Z",
) -> StatsForecast:
    """Complex exponential smoothing of what the seasons leave; `model` counts with `seasonal="native"` only."""
    return _build("ces", model, season, timezone, seasonal=seasonal)


@validate_call
def holt_winters(
    *, season: Season = None, timezone: str = "UTC", error: Literal["additive", "multiplicative"] = "additive"
) -> StatsForecast:
    """Level, trend and a season of up to 24 steps by exponential smoothing; longer seasons are taken off first."""
    return _build("holt_winters", error[0].upper(), season, timezone)


@validate_call
def mstl(*, season: Season = None, timezone: str = "UTC") -> StatsForecast:
    """Seasons by iterated LOESS (MSTL), the rest by ETS."""
    return _build("mstl", "", season, timezone)


def _build(
    kind: Kind,
    variant: str,
    season: Season,
    timezone: str,
    *,
    seasonal: Seasonal = "profile",
    options: tuple[tuple[str, int | bool], ...] = (),
) -> StatsForecast:
    # Importing it takes seconds, so until there is something to forecast it is only looked for.
    if find_spec("statsforecast") is None:
        raise ModuleNotFoundError("statsforecast is not installed")
    return StatsForecast(
        kind=kind, variant=variant, options=options, seasonal=seasonal, season=season, timezone=timezone
    )
