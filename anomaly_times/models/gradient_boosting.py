"""`lgbm`: gradient-boosted trees, one model for all series of a panel; mlforecast's features, LightGBM's trees.

1. Each series loses its seasons to the robust profile that `profile` uses (local time), and what is left is put on one
   scale, `asinh((rest − median) / size)`: rates, bytes and ratios then look alike, and an incident does not decide what
   the trees learn, while a shift of the level stays visible however large it is.
2. The trees see the newest points, means and spreads of windows up to a day, the same time one day and one week ago,
   the local clock, and what the profile says. Gaps are filled for them, but nothing is learned from filled points.
3. Up to six steps ahead every step has a model of its own (direct); farther ahead one model is applied to its own
   forecasts (recursive), so that cost does not grow with the horizon.
4. Quantiles are those of the errors that the same model makes from places inside the history, by series and lead.
   These it has seen while it was trained, so they are on the small side; `calibrate` measures what they are worth.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from importlib.util import find_spec
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, validate_call

from anomaly_times.durations import milliseconds
from anomaly_times.models.profile import Profile
from anomaly_times.models.remainder import without_seasons
from anomaly_times.models.season import DAY, WEEK, local_ms, nan_median, rows_by_length
from anomaly_times.models.tails import tail_quantiles
from anomaly_times.panel import Floats, Grid, Panel, Quantiles

__all__ = ["GradientBoosting", "lgbm"]

_FEWEST = 50
_MOST_POINTS, _MOST_ROWS = 1_500_000, 150_000
_DIRECT = 6
_ORIGINS = 8
_MOST_REPLAYED = 1_500_000
_GROWTH = 6
_NORMAL_MAD = 1.4826
# Three standard deviations: below, asinh is nearly a straight line.
_STRAIGHT = 3.0

Ints = npt.NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class GradientBoosting:
    """LightGBM over mlforecast's features as a `Forecaster`; build it with `lgbm`, and see the module's text.

    A series with fewer than fifty points is forecast by `profile`, with a note, and so are all if the fit fails.
    """

    slow: ClassVar[bool] = True

    lags: int
    trees: int
    leaves: int
    learning_rate: float
    strategy: Literal["auto", "direct", "recursive"]
    threads: int
    seed: int
    season: tuple[timedelta, ...] | None = None
    timezone: str = "UTC"

    def forecast(self, history: Panel, *, h: int, quantiles: Sequence[float]) -> Quantiles:
        """Quantiles of the next `h` points; see `Forecaster.forecast`."""
        values = np.full((history.n_series, h, len(quantiles)), np.nan)
        points = np.isfinite(history.y).sum(axis=1)
        reasons = {int(i): f"only {points[i]} points" for i in np.flatnonzero((points > 0) & (points < _FEWEST))}
        rows = np.flatnonzero(points >= _FEWEST)
        if rows.size:
            scaled = _Scaled.of(history.rows(rows), h, self.season, self.timezone)
            try:
                ahead = np.zeros((rows.size, h, len(quantiles)))
                moving = np.flatnonzero(scaled.size[:, 0] > 0)
                if moving.size:
                    ahead[moving] = self._fitted(scaled.rows(moving), history.grid, h, quantiles)
                values[rows] = scaled.restored(ahead)
            except Exception as exc:  # noqa: BLE001 - whatever a fit dies of, the mission goes on
                reasons |= dict.fromkeys(rows.tolist(), f"{type(exc).__name__}: {exc}"[:120])
        notes = {}
        if reasons:
            instead = sorted(reasons)
            answer = Profile(season=self.season, timezone=self.timezone).forecast(
                history.rows(instead), h=h, quantiles=quantiles
            )
            values[instead] = answer.values
            notes = {i: f"profile instead of lgbm ({reasons[i]})" for i in instead}
        return Quantiles(history.labels, history.grid.following(h), tuple(quantiles), values, notes)

    def _fitted(self, scaled: _Scaled, grid: Grid, h: int, quantiles: Sequence[float]) -> Floats:
        """Quantiles of the rest in units of its size: float64[S, h, Q]."""
        direct = self.strategy == "direct" or (self.strategy == "auto" and h <= _DIRECT)
        trees = _Trees(self, scaled, grid, h, direct=direct)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            # Of missing lags at the beginning of a series, which trees take as they are.
            warnings.simplefilter("ignore")
            ahead, errors = trees.forecasts()
            out = ahead[:, :, None] + _spread(errors, quantiles)
        if not np.isfinite(out).all():
            raise FloatingPointError("the fit gave no finite forecast")
        return np.asarray(out)


@dataclass(frozen=True)
class _Scaled:
    """Series without their seasons, on one scale.

    `z` is float64[S, T] with gaps filled, `known` bool[S, T] tells which points are there, `first` int[S] the first of
    them; `usual` (float64[S, T + h]) is the seasonal profile on the same scale. `middle`, `size` (0 where nothing is
    left but a constant), `center`, `reach` (float64[S, 1]) and `ahead` (float64[S, h]) lead back.
    """

    z: Floats
    known: npt.NDArray[np.bool_]
    first: Ints
    usual: Floats
    middle: Floats
    size: Floats
    center: Floats
    reach: Floats
    ahead: Floats

    @classmethod
    def of(cls, history: Panel, h: int, season: tuple[timedelta, ...] | None, timezone: str) -> _Scaled:
        """Take seasons and scales off; every row must have a point."""
        known = np.isfinite(history.y)
        # Squares of very large and very small values leave the range of doubles.
        center = nan_median(history.y)[:, None]
        deviation = np.where(known, np.abs(history.y / 2 - center / 2), 0.0)
        reach = deviation.max(axis=1, keepdims=True)
        reach = np.where(reach > 0, reach, 1.0)
        unit = (history.y / 2 - center / 2) / reach
        rest, usual = np.full(unit.shape, np.nan), np.zeros((len(unit), unit.shape[1] + h))
        for columns, members in rows_by_length(unit):
            part = Panel(history.labels, history.grid, unit).rows(members).columns(slice(unit.shape[1] - columns, None))
            parts = without_seasons(part, h, season, timezone)
            rest[members, unit.shape[1] - columns :] = parts.rest
            usual[members, unit.shape[1] - columns :] = np.concatenate([parts.profile, parts.ahead], axis=1)
        ahead = usual[:, unit.shape[1] :].copy()
        middle = nan_median(rest)[:, None]
        size = _typical(np.abs(rest - middle))[:, None] * _NORMAL_MAD * _STRAIGHT
        by = np.where(size > 0, size, 1.0)
        z = np.arcsinh((rest - middle) / by)
        time = np.arange(z.shape[1])
        for row, there in zip(z, known, strict=True):
            if not there.all():
                row[~there] = np.interp(time[~there], time[there], row[there])
        return cls(z, known, known.argmax(axis=1), usual / by, middle, size, center, reach, ahead)

    def rows(self, keep: Ints) -> _Scaled:
        """The series at these positions."""
        return _Scaled(**{name: getattr(self, name)[keep] for name in self.__dataclass_fields__})

    def restored(self, rest: Floats) -> Floats:
        """Values for forecasts of the rest in units of `size`, float64[S, h, Q]."""
        with np.errstate(over="ignore", invalid="ignore"):
            rest = rest * self.size[:, :, None] + self.middle[:, :, None] + self.ahead[:, :, None]
            out = 2 * (rest * self.reach[:, :, None] + self.center[:, :, None] / 2)
        limit = np.finfo(np.float64).max
        return np.asarray(np.clip(out, -limit, limit))


def _typical(deviation: Floats) -> Floats:
    """The median of each row, its mean where that is 0 (a series that hardly ever moves)."""
    size = nan_median(deviation)
    return np.where(size > 0, size, _mean(deviation))


def _mean(x: Floats) -> Floats:
    """The mean of each row without its gaps, NaN where there is nothing else."""
    there = np.isfinite(x)
    return np.asarray(np.where(there, x, 0.0).sum(axis=1) / np.where(there.any(axis=1), there.sum(axis=1), np.nan))


class _Trees:
    """One fit: mlforecast's features of every point, LightGBM's trees on a sample of them, and their forecasts."""

    def __init__(self, spec: GradientBoosting, scaled: _Scaled, grid: Grid, h: int, *, direct: bool) -> None:
        self.spec, self.scaled, self.grid, self.h, self.direct = spec, scaled, grid, h, direct

    def forecasts(self) -> tuple[Floats, Floats]:
        """Forecasts from the end (float64[S, h]), and errors from inside the history (float64[S, origins, h]).

        Both are in units of `size`.
        """
        self._fit()
        z, n_points = self.scaled.z, self.grid.n
        room = _MOST_REPLAYED // (len(z) * min(n_points, self._reach))
        n_cuts = int(np.clip(room - 1, 1, _ORIGINS))
        last = n_points - min(self.h, n_points // 4)
        cuts = np.unique(np.linspace(n_points // 2, last, n_cuts).astype(np.intp))
        ahead = self._replay(np.append(cuts, n_points))
        errors = np.full((len(z), len(cuts), self.h), np.nan)
        for i, cut in enumerate(cuts):
            truth = np.where(self.scaled.known, z, np.nan)[:, cut : cut + self.h]
            errors[:, i, : truth.shape[1]] = np.sinh(truth) - np.sinh(ahead[:, i, : truth.shape[1]])
            errors[cut - self.scaled.first < _FEWEST // 2, i] = np.nan
        return np.sinh(ahead[:, -1]), errors

    @cached_property
    def _seasons(self) -> list[int]:
        """A day and a week, or the periods given, in steps, as far as the history covers them."""
        periods = (DAY, WEEK) if self.spec.season is None else self.spec.season
        steps = sorted({round(period / self.grid.step) for period in periods})
        return [n for n in steps if self.spec.lags < n < self.grid.n]

    @cached_property
    def _windows(self) -> list[int]:
        longest = max(8, min(round(DAY / self.grid.step), self.grid.n // 2))
        return [4**i for i in range(1, 8) if 4**i < longest] + [longest]

    @cached_property
    def _reach(self) -> int:
        """How many points before a forecast its features look at."""
        return max([self.spec.lags, *self._windows, *(3 * n for n in self._seasons)]) + 1

    @cached_property
    def _calendar(self) -> Floats:
        """The local clock at every time of history and horizon: minute of the day and day of the week."""
        clock = local_ms(Grid(self.grid.start, self.grid.step, self.grid.n + self.h), self.spec.timezone)
        day = milliseconds(DAY)
        # 1970-01-01 was a Thursday.
        return np.stack([clock % day / 60_000, (clock // day + 3) % 7], axis=1)

    def _fit(self) -> None:
        from lightgbm import LGBMRegressor
        from mlforecast import MLForecast
        from mlforecast.lag_transforms import RollingMean, RollingStd, SeasonalRollingMean

        spec = self.spec
        transforms: dict[int, list[Any]] = {1: [RollingMean(w, min_samples=1) for w in self._windows]}
        transforms[1] += [RollingStd(w, min_samples=2) for w in self._windows[1:3]]
        for n in self._seasons:
            transforms[n] = [SeasonalRollingMean(n, 3, min_samples=1)]
        self._model = MLForecast(
            LGBMRegressor(
                n_estimators=spec.trees,
                num_leaves=spec.leaves,
                learning_rate=spec.learning_rate,
                objective="regression_l1",
                random_state=spec.seed,
                n_jobs=spec.threads,
                deterministic=True,
                force_row_wise=True,
                verbosity=-1,
            ),
            # Positions for times: mlforecast knows no zones, and its steps would be pandas', where 5m is five months.
            freq=1,
            lags=[*range(1, spec.lags + 1), *self._seasons],
            lag_transforms=transforms,
            num_threads=spec.threads,
        )
        z, n = self.scaled.z, self.grid.n
        random = np.random.default_rng(spec.seed)
        most = max(1, _MOST_POINTS // n)
        taught = np.sort(random.choice(len(z), most, replace=False)) if len(z) > most else np.arange(len(z))
        first = self.scaled.first
        row = np.repeat(taught, n - first[taught])
        column = np.concatenate([np.arange(start, n) for start in first[taught]])
        frame = self._frame(row, column, row, z[row, column])
        features, _ = self._model.preprocess(
            frame,
            static_features=[],
            dropna=False,
            return_X_y=True,
            as_numpy=True,
            max_horizon=self.h if self.direct else None,
            validate_data=False,
        )
        leads = range(self.h) if self.direct else range(1)
        # Until a few points are known there is nothing to go by.
        usable = np.flatnonzero(column - first[row] >= min(spec.lags, _FEWEST // 2))
        usable = usable[column[usable] + leads[-1] < n]
        most = _MOST_ROWS // len(leads)
        if usable.size > most:
            usable = np.sort(random.choice(usable, most, replace=False))
        given = self._given(row, column)

        def examples() -> Any:
            for lead in leads:
                at = usable[self.scaled.known[row[usable], column[usable] + lead]]
                own = features[at]
                # mlforecast leaves the clock of a direct forecast at its origin; here it is that of the target.
                own[:, : given.shape[1]] = given[at + lead]
                yield lead, own, z[row[at], column[at] + lead]

        if self.direct:
            self._model.fit_models(generator_factory=examples)
        else:
            _, x, y = next(examples())
            self._model.fit_models(x, y)

    def _given(self, row: Ints, column: Ints) -> Floats:
        """What is known of a time in advance: the clock, and the seasonal profile."""
        return np.concatenate([self._calendar[column], self.scaled.usual[row, column, None]], axis=1)

    def _frame(self, series: Ints, column: Ints, row: Ints, z: Floats | None) -> Any:
        """A long frame in mlforecast's words; without `z` one of what is given in advance."""
        import pandas as pd

        minute, weekday, usual = self._given(row, column).T
        columns = {"unique_id": series, "ds": column, "minute": minute, "weekday": weekday, "usual": usual}
        return pd.DataFrame(columns if z is None else columns | {"y": z})

    def _replay(self, cuts: Ints) -> Floats:
        """Forecasts of every series from every cut (rising), as if what follows it were not known: [S, cuts, h]."""
        a_block = max(1, _MOST_REPLAYED // (len(cuts) * min(self.grid.n, self._reach)))
        series = np.arange(len(self.scaled.z))
        blocks = [self._predicted(series[i : i + a_block], cuts) for i in range(0, len(series), a_block)]
        return np.concatenate(blocks)

    def _predicted(self, rows: Ints, cuts: Ints) -> Floats:
        # A series as it was at a cut is a series of its own to mlforecast.
        series = np.arange(len(rows) * len(cuts))
        row, cut = np.repeat(rows, len(cuts)), np.tile(cuts, len(rows))
        start = np.maximum(cut - self._reach, np.minimum(self.scaled.first[row], cut - 1))
        length = cut - start
        which = np.repeat(series, length)
        column = np.arange(len(which)) - np.repeat(np.cumsum(length) - length, length) + np.repeat(start, length)
        seen = self._frame(which, column, row[which], self.scaled.z[row[which], column])
        ahead = (cut[:, None] + np.arange(self.h)).ravel()
        later = np.repeat(series, self.h)
        given = self._frame(later, ahead, row[later], None)
        found = self._model.predict(self.h, new_df=seen, X_df=given)
        return np.asarray(found["LGBMRegressor"], dtype=np.float64).reshape(len(rows), len(cuts), self.h)


def _spread(errors: Floats, quantiles: Sequence[float]) -> Floats:
    """Quantiles around the forecast, 0 at the median, from `errors` (float64[S, origins, h]): float64[S, h, Q]."""
    n_series, _, h = errors.shape
    absolute = np.abs(errors)
    size = _typical(absolute.reshape(n_series, -1))
    overall = float(nan_median(size[None])[0])
    size = np.where(size > 0, size, overall if overall > 0 else 1.0)
    # How errors grow with the lead is much alike in a panel, and a single series has few errors at each lead.
    edges = np.unique(np.geomspace(1, h + 1, _GROWTH + 1).round().astype(np.intp)) - 1
    blocks = [_mean(absolute[:, :, a:b].reshape(n_series, -1)) for a, b in pairwise(edges)]
    relative = nan_median(np.array(blocks) / _mean(absolute.reshape(n_series, -1)))
    middle = (edges[:-1] + edges[1:] - 1) / 2
    growth = np.interp(np.arange(h), middle, np.where(relative > 0, relative, 1.0))
    scale = size[:, None] * growth
    shape = tail_quantiles((errors / scale[:, None]).reshape(n_series, -1), (*quantiles, 0.5))
    shape = np.nan_to_num(shape[:, :-1] - shape[:, -1:])
    return np.asarray(scale[:, :, None] * shape[:, None, :])


Season = tuple[timedelta, ...] | None


@validate_call
def lgbm(
    *,
    season: Season = None,
    timezone: str = "UTC",
    lags: Annotated[int, Field(ge=1, le=1000)] = 12,
    trees: Annotated[int, Field(ge=1, le=10_000)] = 200,
    leaves: Annotated[int, Field(ge=2, le=1024)] = 31,
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 0.05,
    strategy: Literal["auto", "direct", "recursive"] = "auto",
    threads: Annotated[int, Field(ge=1, le=256)] = 1,
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0,
) -> GradientBoosting:
    """Gradient-boosted trees over lags, rolling and seasonal features and the local clock; one model a panel.

    `lags` counts the newest points that the trees see one by one; `direct` makes one model a step.
    """
    # Importing them takes seconds, so until there is something to forecast they are only looked for.
    for package in ("mlforecast", "lightgbm"):
        if find_spec(package) is None:
            raise ModuleNotFoundError(f"{package} is not installed")
    return GradientBoosting(
        lags=lags,
        trees=trees,
        leaves=leaves,
        learning_rate=learning_rate,
        strategy=strategy,
        threads=threads,
        seed=seed,
        season=season,
        timezone=timezone,
    )
