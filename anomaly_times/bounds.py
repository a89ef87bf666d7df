"""Forecasts with final bounds and limits: as sensitive as a mission says.

What past errors tell (how wide a band has to be, what evidence over time is normal, which model `auto` takes) is worked
out at 00:00 and 12:00 UTC, from what was complete then, and holds for half a day: a `Tuning`. The forecast itself knows
all that is complete. Were both made anew every hour, bands would jitter by chance from one hour to the next, evidence
over time, which is measured in their widths, would jitter with them, and nearly all the work of a pass would go into
learning what it learned an hour ago.

A series that is younger than four days and a half, or was not there at that time, is tuned at once.

Nothing is kept between passes: each works out the same again from the same values, unless it is given `Tunings`.

A panel is worked on in `Block`s of `BLOCK_ROWS` series, whoever does the work and wherever: memory is bounded by a
block rather than by the panel, blocks can be done at once, and no figure depends on how many processors there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Protocol

import numpy as np
import numpy.typing as npt

from anomaly_times import scoring
from anomaly_times.durations import EPOCH
from anomaly_times.limits import BAND, REACH, FittedLimits, fit_limits, floored, widened
from anomaly_times.mission import Mission
from anomaly_times.models import Forecaster, is_pooled, known_model
from anomaly_times.models.calibrate import Calibrated, calibrated, forecast_again
from anomaly_times.panel import Choice, Floats, Forecast, Grid, Limits, Panel
from anomaly_times.profiling import staged

__all__ = [
    "BLOCK_ROWS",
    "TUNED_EVERY",
    "Block",
    "BlockMapper",
    "Bounded",
    "Tunings",
    "bounded",
    "bounded_by_blocks",
    "tuned_at",
]

BLOCK_ROWS = 500
"""What a series costs hardly depends on it (`python -m benchmarks.scale --only blocks`); memory of a process does."""

TUNED_EVERY = timedelta(hours=12)
_GROWN, _ALIVE = timedelta(days=4), timedelta(days=1)
"""So much of a series lies before the time at which it is tuned, and it had a value so shortly before that."""

_MOST_AHEAD = 288
"""So many steps ahead are enough to tell how evidence gathers; more would cost more than they tell."""

_KEPT = 4
"""Tunings of a block: as many are kept as passes over one mission can need, and some more."""

Ints = npt.NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Bounded:
    """A forecast with final bounds, and how many series' budget asked for more than their history can tell.

    `cpu` is what other processes took for it, in seconds of their processors.
    """

    forecast: Forecast
    capped: int
    cpu: float = 0.0


@dataclass(frozen=True, eq=False)
class Tuning:
    """What past errors of some series tell: `limits` where the mission has a budget."""

    made: Calibrated
    limits: FittedLimits | None


@dataclass
class Tunings:
    """Tunings of earlier passes, by the values that they were made of: whoever finds one needs not make it again."""

    blocks: int = 1
    """How many blocks the missions have that are forecast in turn."""
    _kept: dict[bytes, Tuning] = field(default_factory=dict)

    def of(self, mission: Mission, model: Forecaster, block: Panel, *, budget: float) -> Tuning:
        """The tuning of a mission by the values of `block`; see `_tuned`."""
        key = hashlib.blake2b(repr((mission.model_dump_json(), budget, block.labels, block.grid)).encode())
        key.update(np.ascontiguousarray(block.y).tobytes())
        found = self._kept.pop(key.digest(), None)
        self._kept[key.digest()] = found = found or _tuned(mission, model, block, budget=budget)
        while len(self._kept) > _KEPT * self.blocks:
            del self._kept[next(iter(self._kept))]
        return found


def tuned_at(now: datetime) -> datetime:
    """The newest time that tunings of a pass at `now` are made for."""
    return now - (now - EPOCH) % TUNED_EVERY


@dataclass(frozen=True, eq=False)
class Block:
    """Some series of a mission with all that their forecast is made of: what another process or machine needs.

    `history` is what may be learned from, `least` float64[S] as for `bounded`, `budget` alerts a week and series.
    """

    mission: Mission
    history: Panel
    least: Floats
    budget: float


class BlockMapper(Protocol):
    """Does blocks, in any order and anywhere, and answers in theirs: `map` does so here, one after the other."""

    def __call__(self, function: Callable[[Block], Bounded], blocks: Iterable[Block], /) -> Iterable[Bounded]:
        """What `function` makes of each; it can be pickled, as can blocks and what it answers."""
        ...


def bounded_by_blocks(
    mission: Mission,
    history: Panel,
    *,
    least: Floats,
    mapper: BlockMapper = map,
    tunings: Tunings | None = None,
) -> Bounded:
    """The mission's next `h` points from `history`, with bounds and limits as it asks for.

    Args:
        mission: what is forecast.
        history: up to the cutoff, less what no one should learn from.
        least: no half-width is under these, float64[S].
        mapper: does the blocks; where `tunings` are given they are done here.
        tunings: those of earlier passes.

    Raises:
        ModelError: if the model cannot work on this panel.
    """
    budget = _budget(mission, history.n_series)
    n_blocks = 1 if is_pooled(mission.forecast.model) else -(-history.n_series // BLOCK_ROWS)
    blocks, rows, first = list[Block](), list[Ints](), 0
    for part in history.shards(n_blocks):
        position = np.arange(first, first + part.n_series)
        blocks.append(Block(mission, part, least[position], budget))
        rows.append(position)
        first += part.n_series
    if tunings is not None:
        tunings.blocks = max(tunings.blocks, n_blocks)
        made = [_bounded_block(block, tunings) for block in blocks]
    else:
        made = list(mapper(_bounded_block, blocks))
    return _together(history, list(zip(rows, made, strict=True)))


@staged("calibrate")
def _bounded_block(block: Block, tunings: Tunings | None = None) -> Bounded:
    mission = block.mission
    model = known_model(mission.forecast.model, season=mission.season, timezone=mission.timezone)
    return bounded(mission, model, block.history, least=block.least, budget=block.budget, tunings=tunings)


def bounded(
    mission: Mission,
    model: Forecaster,
    history: Panel,
    *,
    least: Floats,
    budget: float | None = None,
    tunings: Tunings | None = None,
) -> Bounded:
    """As `bounded_by_blocks`, of all series at once.

    Args:
        mission: what is forecast.
        model: its model.
        history: as for `bounded_by_blocks`.
        least: as for `bounded_by_blocks`.
        budget: alerts a week and series; by default the mission's, spread over these series where it is for all.
        tunings: those of earlier passes.

    Raises:
        ModelError: if the model cannot work on this panel.
    """
    tune = tunings.of if tunings is not None else _tuned
    if budget is None:
        budget = _budget(mission, history.n_series)
    parts: list[tuple[Ints, Bounded]] = []
    for rows, block in _by_age(history):
        part = history if len(rows) == history.n_series else history.rows(rows)
        parts.append((rows, _apply(mission, model, part, tune(mission, model, block, budget=budget), least[rows])))
    return _together(history, parts)


def _budget(mission: Mission, n_series: int) -> float:
    """Alerts a week and series."""
    detect = mission.detect
    return detect.alerts_per_week / n_series if detect.per == "mission" else detect.alerts_per_week


def _together(history: Panel, parts: Sequence[tuple[Ints, Bounded]]) -> Bounded:
    """The one of all series of `history` from those of some of its rows each."""
    if len(parts) == 1:
        [(_, whole)] = parts
        # Of these very labels: those that come from elsewhere are copies.
        return replace(whole, forecast=replace(whole.forecast, labels=history.labels))
    forecast = _joined(history, [(rows, one.forecast) for rows, one in parts])
    return Bounded(forecast, sum(one.capped for _, one in parts), sum(one.cpu for _, one in parts))


def _by_age(history: Panel) -> Iterator[tuple[Ints, Panel]]:
    """Which series are tuned together, and by which values: those that have grown, and the others by all there is."""
    grid = history.grid
    at = tuned_at(grid.end)
    stop = grid.index(at) + 1
    # Of whichever pass: what its history begins with must not matter.
    n = grid.n - -(-TUNED_EVERY // grid.step)
    grown = np.zeros(history.n_series, dtype=np.bool_)
    if n * grid.step > _GROWN and stop >= n:
        block = history.columns(slice(stop - n, stop))
        known = np.isfinite(block.y)
        alive = known[:, n - max(1, _ALIVE // grid.step) :].any(axis=1)
        grown = np.asarray(alive & known[:, : n - _GROWN // grid.step].any(axis=1))
        if grown.any():
            yield np.flatnonzero(grown), block if grown.all() else block.rows(grown)
    if not grown.all():
        yield np.flatnonzero(~grown), history if not grown.any() else history.rows(~grown)


def _tuned(mission: Mission, model: Forecaster, block: Panel, *, budget: float) -> Tuning:
    """What the errors of past forecasts of these values tell.

    Args:
        mission: whose they are.
        model: its model.
        block: values up to the time of the tuning.
        budget: alerts a week and series.
    """
    if mission.forecast.level is not None:
        return Tuning(calibrated(model, block, h=mission.h, levels=(mission.forecast.level,)), None)
    # Slow models make few past forecasts, and a long one costs them little more than a short one.
    reach = REACH / 2 if getattr(model, "slow", False) else REACH
    made = calibrated(model, block, h=max(mission.h, min(reach // mission.step, _MOST_AHEAD)), levels=(BAND,))
    least = scoring.resolution(block.y)
    band = floored(made.bounds(BAND), least)
    limits = fit_limits(
        made.history.y,
        made.past_ratios(band),
        made.freedom,
        step=mission.step,
        alerts_per_week=budget,
        final=lambda width: made.past_ratios(_final(mission, widened(band, width), least)),
    )
    return Tuning(made, limits)


def _apply(mission: Mission, model: Forecaster, history: Panel, tuning: Tuning, least: Floats) -> Bounded:
    """The forecast from `history`, bounded as the tuning of its rows says."""
    made = tuning.made
    if made.quantiles.grid.start != history.grid.following(1).start:
        made = forecast_again(model, made, history)
    level, limits = mission.forecast.level, tuning.limits
    if level is not None or limits is None:
        return Bounded(_final(mission, made.bounds(level or BAND).columns(slice(mission.h)), least), 0)
    band = floored(made.bounds(BAND).columns(slice(mission.h)), least)
    forecast = _final(mission, widened(band, limits.width), least)
    kept = limits.rounded() if mission.watches_over_time else None
    return Bounded(replace(forecast, limits=kept), int(limits.capped.sum()))


def _final(mission: Mission, forecast: Forecast, least: Floats) -> Forecast:
    scale = mission.forecast.interval_scale
    return scoring.final_bounds(forecast, mission.detect, resolution=least, interval_scale=scale)


def _joined(history: Panel, parts: Sequence[tuple[Ints, Forecast]]) -> Forecast:
    """One forecast of all series of `history` from those of some of its rows each; all have limits, or none."""
    grid: Grid = parts[0][1].grid
    band = np.empty((3, history.n_series, grid.n))
    notes: dict[int, str] = {}
    models: dict[int, Choice] = {}
    warming: set[int] = set()
    for rows, part in parts:
        for whole, values in zip(band, (part.yhat, part.lower, part.upper), strict=True):
            whole[rows] = values
        notes |= {int(rows[i]): text for i, text in part.notes.items()}
        models |= {int(rows[i]): choice for i, choice in part.models.items()}
        warming |= {int(rows[i]) for i in part.warming}
    limits = None
    order = np.argsort(np.concatenate([rows for rows, _ in parts]))
    if all(part.limits is not None for _, part in parts):
        several = [part.limits for _, part in parts if part.limits is not None]
        limits = Limits(
            np.concatenate([each.usual for each in several], axis=1)[:, order],
            np.concatenate([each.limit for each in several], axis=1)[:, order],
            np.concatenate([each.move for each in several])[order],
        )
    return Forecast(
        *(history.labels, grid, history.grid.end, band[0], band[1], band[2]),
        notes=dict(sorted(notes.items())),
        models=dict(sorted(models.items())),
        warming=frozenset(warming),
        limits=limits,
    )
