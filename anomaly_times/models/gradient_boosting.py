"""`lgbm`: gradient-boosted trees that learn what `profile` misses, one model for all series of a panel.

mlforecast makes the features, LightGBM grows the trees.

1. `profile` forecasts every series from many places inside its history, seeing only what lies before each. The trees
   learn the errors of these forecasts, in units of the spread that `profile` expects there, squeezed by `asinh`. So one
   model serves rates, bytes and ratios, an incident does not decide what is learned, and seasons and trends, which
   trees do not continue, are taken care of.
2. They see the newest points, means and deviations of windows up to a day, how each window differs from the one a day
   and a week before, what the same time in the last three days and weeks was, what `profile` says, the local clock, and
   how far ahead the point lies. One model answers all leads directly: going on from its own forecasts, as is usual,
   piles up errors (Taieb, Bontempi, Atiya & Sorjamaa, Expert Systems with Applications 39, 2012).
3. How many trees, and how far to follow them, is tried on the latest of those places, which the trial fit has not
   seen. Where trees do not help there beyond chance, `profile` answers alone.
4. Quantiles are those of `profile`, moved to the new median and as much narrower as errors became in that trial.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from importlib.util import find_spec
from typing import Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field, validate_call

from anomaly_times.durations import milliseconds
from anomaly_times.models.profile import INSTEAD, Profile
from anomaly_times.models.season import DAY, WEEK, local_ms, nan_median
from anomaly_times.panel import Floats, Grid, Panel, Quantiles

__all__ = ["GradientBoosting", "lgbm"]

_FEWEST = 50
# It learns from so many series at most, from so many points ahead of its places, and draws them from so many.
_MOST_SERIES, _MOST_ROWS, _MOST_DRAWN = 2_000, 100_000, 4_000_000
_FEWEST_ROWS = 100
_PLACES, _MOST_PLACES, _FIRST = 24, 200, 0.35
_A_BLOCK = 400_000
_SPREAD = (0.1, 0.5, 0.9)
# Between its 10 % and 90 % quantiles a normal distribution has so many standard deviations.
_DEVIATIONS = 2.563
# Three standard deviations: below, asinh is nearly a straight line.
_STRAIGHT = 3.0
_LATEST, _SHARES = 0.2, (0.5, 0.75, 1.0)
# Trees have to help by so many standard errors of what they help on average.
_BEYOND_CHANCE = 1.0
_LEAF = 50
_CYCLES = 3

Ints = npt.NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class GradientBoosting:
    """LightGBM over mlforecast's features as a `Forecaster`; build it with `lgbm`, and see the module's text.

    A series with fewer than fifty points is forecast by `profile`, with a note, and so are all if the fit fails or does
    not help.
    """

    slow: ClassVar[bool] = True

    lags: int
    trees: int
    leaves: int
    learning_rate: float
    threads: int
    seed: int
    season: tuple[timedelta, ...] | None = None
    timezone: str = "UTC"

    def forecast(self, history: Panel, *, h: int, quantiles: Sequence[float]) -> Quantiles:
        """Quantiles of the next `h` points; see `Forecaster.forecast`."""
        answer = self.profile.forecast(history, h=h, quantiles=quantiles)
        values = answer.values.copy()
        points = np.isfinite(history.y).sum(axis=1)
        reasons = {int(i): f"only {points[i]} points" for i in np.flatnonzero((points > 0) & (points < _FEWEST))}
        rows = np.flatnonzero(points >= _FEWEST)
        if rows.size:
            try:
                with warnings.catch_warnings(), np.errstate(all="ignore"):
                    # Of missing lags at the beginning of a series, which trees take as they are.
                    warnings.simplefilter("ignore")
                    learned = self._learned(history.rows(rows), h, quantiles)
            except Exception as exc:  # noqa: BLE001 - whatever a fit dies of, the mission goes on
                reasons |= dict.fromkeys(rows.tolist(), f"{type(exc).__name__}: {exc}"[:120])
            else:
                if learned is None:
                    reasons |= dict.fromkeys(rows.tolist(), "trees add nothing to its past forecasts")
                else:
                    values[rows] = learned
        notes = {i: f"{INSTEAD} lgbm ({reason})" for i, reason in reasons.items()}
        notes = {i: f"{text}; {answer.notes[i]}" if i in answer.notes else text for i, text in notes.items()}
        return Quantiles(history.labels, history.grid.following(h), tuple(quantiles), values, notes)

    @property
    def profile(self) -> Profile:
        """What the trees correct."""
        return Profile(season=self.season, timezone=self.timezone)

    def _learned(self, history: Panel, h: int, quantiles: Sequence[float]) -> Floats | None:
        """Quantiles (float64[S, h, Q]), or nothing where trees do not help; every row must have a point."""
        random = np.random.default_rng(self.seed)
        unit, center, reach = _unit(history)
        taught = unit
        most = min(_MOST_SERIES, max(1, _MOST_DRAWN // (_PLACES * h)))
        if unit.n_series > most:
            taught = unit.rows(np.sort(random.choice(unit.n_series, most, replace=False)))
        n = unit.grid.n
        wanted = int(np.clip(_MOST_ROWS // (taught.n_series * h), _PLACES, _MOST_PLACES))
        last = max(1, n - min(h, n // 4))
        places = np.unique(np.linspace(min(last, _FIRST * n), last, wanted).round().astype(np.intp))
        past = _Places.of(self, taught, places, h)
        fit = _Fit.of(self, past, random)
        if fit is None:
            return None
        wide = tuple(sorted({*quantiles, *_SPREAD}))
        values = np.empty((unit.n_series, h, len(quantiles)))
        for block in _blocks(unit.n_series, n + h):
            part = unit.rows(block)
            answer = self.profile.forecast(part, h=h, quantiles=wide)
            end = _Places(self, part, np.array([n]), *_base(answer))
            moved = answer.at(0.5) + fit.correction(end)[:, 0]
            for i, quantile in enumerate(quantiles):
                values[block, :, i] = moved + fit.error * (answer.at(quantile) - answer.at(0.5))
        if not np.isfinite(values).all():
            raise FloatingPointError("the fit gave no finite forecast")
        values = 2 * (values * reach[:, :, None] + center[:, :, None] / 2)
        limit = np.finfo(np.float64).max
        return np.asarray(np.clip(values, -limit, limit))


def _unit(history: Panel) -> tuple[Panel, Floats, Floats]:
    """The history between −1 and 1, and the center and reach that lead back: `2 (u · reach + center / 2)`.

    Differences of very large values leave the range of doubles, hence the halves.
    """
    center = nan_median(history.y)[:, None]
    half = history.y / 2 - center / 2
    reach = np.fmax.reduce(np.abs(half), axis=1)[:, None]
    reach = np.where(reach > 0, reach, 1.0)
    return Panel(history.labels, history.grid, half / reach), center, reach


def _base(answer: Quantiles) -> tuple[Floats, Floats]:
    """Medians and standard deviations, float64[S, 1, h] each."""
    low, middle, high = (answer.at(q)[:, None] for q in _SPREAD)
    return middle, (high - low) / _DEVIATIONS


def _blocks(n_series: int, n_points: int) -> Iterator[Ints]:
    """Rows by blocks that fit the memory."""
    size = max(1, _A_BLOCK // n_points)
    return (np.arange(first, min(n_series, first + size)) for first in range(0, n_series, size))


@dataclass(frozen=True)
class _Places:
    """Some places of a history (`cuts`: how many points lie before each), and what `profile` forecasts from there.

    `base` and `spread` are its median and standard deviation, float64[S, cuts, h].
    """

    spec: GradientBoosting
    history: Panel
    cuts: Ints
    base: Floats
    spread: Floats

    @classmethod
    def of(cls, spec: GradientBoosting, history: Panel, cuts: Ints, h: int) -> _Places:
        """Let `profile` forecast from each of `cuts`."""
        made = [
            _base(spec.profile.forecast(history.columns(slice(cut)), h=h, quantiles=_SPREAD)) for cut in cuts.tolist()
        ]
        base, spread = (np.concatenate(parts, axis=1) for parts in zip(*made, strict=True))
        return cls(spec, history, cuts, base, spread)

    @cached_property
    def size(self) -> Floats:
        """The unit of errors and features at each place, 0 where nothing is to be learned: float64[S, cuts, 1]."""
        return np.asarray(np.nan_to_num(self.spread.mean(axis=2, keepdims=True)))

    @cached_property
    def errors(self) -> Floats:
        """What `profile` missed, squeezed: float64[S, cuts, h], NaN where it is not known."""
        y = np.pad(self.history.y, ((0, 0), (0, self._h)), constant_values=np.nan)
        missed = y[:, self.times] - self.base
        return np.asarray(np.where(self.size > 0, np.arcsinh(missed / self.size / _STRAIGHT), np.nan))

    def corrections(self, squeezed: Floats) -> Floats:
        """What to add to `base` for errors as in `errors`."""
        return np.asarray(_STRAIGHT * self.size * np.sinh(squeezed))

    def features(self, at: Ints) -> npt.NDArray[np.float32]:
        """What trees see of these points, given as positions in `base.ravel()`: float32[len(at), F]."""
        row, cut, lead = np.unravel_index(at, self.base.shape)
        time = self.times[cut, lead]
        base, size = self.base[row, cut, lead], self.size[row, cut, 0]
        n_lags, n_windows = self.spec.lags, len(self._windows)
        recent = self._recent[row, cut]
        lags, means, others = np.split(recent, (n_lags, n_lags + n_windows), axis=1)
        deviations, before = others[:, : len(self._deviations)], others[:, len(self._deviations) :]
        columns = [
            lags - self.base[row, cut, 0][:, None],
            means[:, :-1] - means[:, -1:],
            deviations,
            *(means - then for then in np.split(before, max(1, len(self._seasons)), axis=1) if then.size),
            (base - means[:, -1])[:, None],
            self.spread[row, cut, lead][:, None],
        ]
        for length in self._seasons:
            newest = time - -(-(lead + 1) // length) * length
            for back in range(_CYCLES):
                then = newest - back * length
                value = np.where(then >= 0, self.history.y[row, np.maximum(then, 0)], np.nan)
                columns.append((value - base)[:, None])
        relative = np.arcsinh(np.concatenate(columns, axis=1) / np.where(size > 0, size, 1.0)[:, None])
        return np.concatenate([relative, np.log1p(lead)[:, None], self._clock[time]], axis=1).astype(np.float32)

    @property
    def _h(self) -> int:
        return int(self.base.shape[2])

    @cached_property
    def times(self) -> Ints:
        """Columns of what is forecast: int[cuts, h]."""
        return self.cuts[:, None] + np.arange(self._h)

    @cached_property
    def _seasons(self) -> list[int]:
        """A day and a week, or the periods given, in steps, as far as the history covers them."""
        periods = (DAY, WEEK) if self.spec.season is None else self.spec.season
        steps = sorted({round(period / self.history.grid.step) for period in periods})
        return [n for n in steps if 2 <= n < self.history.grid.n]

    @cached_property
    def _windows(self) -> list[int]:
        longest = max(8, min(round(DAY / self.history.grid.step), self.history.grid.n // 2))
        return [4**i for i in range(8) if 4**i < longest] + [longest]

    @cached_property
    def _deviations(self) -> list[int]:
        return self._windows[2:4]

    @cached_property
    def _clock(self) -> Floats:
        """The local clock at every time of history and horizon: minute of the day and day of the week."""
        grid = self.history.grid
        clock = local_ms(Grid(grid.start, grid.step, grid.n + self._h), self.spec.timezone)
        day = milliseconds(DAY)
        # 1970-01-01 was a Thursday.
        return np.stack([clock % day / 60_000, (clock // day + 3) % 7], axis=1)

    @cached_property
    def _recent(self) -> Floats:
        """Lags, means and deviations of windows, and means a season ago, at the cuts: float64[S, cuts, F]."""
        blocks = [self._recent_of(block) for block in _blocks(self.history.n_series, self.history.grid.n)]
        return np.concatenate(list(blocks))

    def _recent_of(self, rows: Ints) -> Floats:
        import pandas as pd
        from mlforecast import MLForecast
        from mlforecast.lag_transforms import RollingMean, RollingStd

        means = [RollingMean(window, min_samples=1) for window in self._windows]
        transforms: dict[int, list[Any]] = {
            1: [*means, *(RollingStd(window, min_samples=2) for window in self._deviations)]
        }
        transforms |= {1 + length: means for length in self._seasons}
        # Positions for times: mlforecast knows no zones, and its steps would be pandas', where 5m is five months.
        made = MLForecast(
            [], freq=1, lags=range(1, self.spec.lags + 1), lag_transforms=transforms, num_threads=self.spec.threads
        )
        y = self.history.y[rows]
        known = np.isfinite(y)
        first, n = known.argmax(axis=1), y.shape[1]
        time = np.arange(n + 1)
        # One more time: what is known at the end of the history stands beside the point that follows.
        filled = np.stack([np.interp(time, time[:-1][there], row[there]) for row, there in zip(y, known, strict=True)])
        series = np.repeat(np.arange(len(y)), n + 1 - first)
        column = np.concatenate([time[start:] for start in first])
        frame = pd.DataFrame({"unique_id": series, "ds": column, "y": filled[series, column]})
        told, _ = made.preprocess(
            frame, static_features=[], dropna=False, return_X_y=True, as_numpy=True, validate_data=False
        )
        begins = np.cumsum(n + 1 - first) - (n + 1 - first)
        at = begins[:, None] + self.cuts - first[:, None]
        recent: Floats = np.asarray(told, dtype=np.float64)[np.maximum(at, 0)]
        recent[self.cuts < first[:, None]] = np.nan
        return recent


@dataclass(frozen=True)
class _Fit:
    """Trees, how far to follow them, and how large errors are then beside those of `profile`."""

    trees: Any
    share: float
    error: float

    @classmethod
    def of(cls, spec: GradientBoosting, past: _Places, random: np.random.Generator) -> _Fit | None:
        """Learn from past forecasts; nothing where it does not help with the latest of them, unseen."""
        errors = past.errors.ravel()
        known = np.isfinite(past.errors)
        n_late = max(1, round(_LATEST * len(past.cuts)))
        begin = past.cuts[-n_late]
        late = (past.cuts >= begin)[:, None] & known
        early = (past.times < begin) & known

        def some(of: npt.NDArray[np.bool_], most: int) -> Ints:
            at = np.flatnonzero(of)
            return np.sort(random.choice(at, most, replace=False)) if at.size > most else at

        def grown(at: Ints, n_trees: int) -> Any:
            from lightgbm import LGBMRegressor

            return LGBMRegressor(
                n_estimators=n_trees,
                num_leaves=spec.leaves,
                learning_rate=spec.learning_rate,
                min_child_samples=_LEAF,
                objective="regression_l1",
                random_state=spec.seed,
                n_jobs=spec.threads,
                deterministic=True,
                force_row_wise=True,
                verbosity=-1,
            ).fit(past.features(at), errors[at])

        learn, judge = some(early, _MOST_ROWS // 2), some(late, _MOST_ROWS // 4)
        if min(learn.size, judge.size) < _FEWEST_ROWS:
            return None
        trial, told, truth = grown(learn, spec.trees), past.features(judge), errors[judge]
        best, said = (float(np.abs(truth).mean()), 0, 0.0), np.zeros_like(truth)
        usual = best[0]
        for n_trees in sorted({max(1, round(spec.trees * i / 10)) for i in range(1, 11)}):
            one = trial.predict(told, num_iteration=n_trees)
            for share in _SHARES:
                error = float(np.abs(truth - share * one).mean())
                if error < best[0]:
                    best, said = (error, n_trees, share), share * one
        error, n_trees, share = best
        gain = np.abs(truth) - np.abs(truth - said)
        # What a series has at one time, and shortly before and after, counts once, however many forecasts lead there.
        row, cut, lead = np.unravel_index(judge, past.base.shape)
        stretch = past.times[cut, lead] // past.base.shape[2]
        _, kin = np.unique(np.stack([row, stretch]), axis=1, return_inverse=True)
        doubt = float(np.sqrt((np.bincount(kin, gain - gain.mean()) ** 2).sum())) / gain.size
        if gain.mean() <= _BEYOND_CHANCE * doubt:
            return None
        return cls(grown(some(known, _MOST_ROWS), n_trees), share, error / usual)

    def correction(self, places: _Places) -> Floats:
        """What to add to `places.base`: float64[S, cuts, h]."""
        said = np.asarray(self.trees.predict(places.features(np.arange(places.base.size))), dtype=np.float64)
        return np.nan_to_num(places.corrections(self.share * said.reshape(places.base.shape)))


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
    threads: Annotated[int, Field(ge=1, le=256)] = 1,
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0,
) -> GradientBoosting:
    """Gradient-boosted trees over lags, rolling and seasonal features and the local clock; one model a panel.

    `lags` counts the newest points that the trees see one by one; there are at most `trees` trees.
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
        threads=threads,
        seed=seed,
        season=season,
        timezone=timezone,
    )
