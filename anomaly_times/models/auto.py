"""`auto`: each series gets the model that has forecast its own past best.

The candidates forecast from a few past cut-offs, and their pinball losses (Koenker & Bassett, Econometrica 46, 1978) at
the quantiles that bounds are made of are compared. Four forecasts prove little, so the first candidate, which is the
best one on the whole, stays unless another one beats it by a margin and by more than chance would: a variant of the
one-standard-error rule of Breiman, Friedman, Olshen & Stone (Classification and Regression Trees, 1984, section 3.4.3).
The same past forecasts serve for calibration (`RollingForecaster`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, validate_call

from anomaly_times.errors import ModelError
from anomaly_times.mission import ModelSpec
from anomaly_times.models.calibrate import ORIGINS, ORIGINS_OF_SLOW, SPREAD, past_cuts
from anomaly_times.models.registry import Forecaster, build_model, revision_of
from anomaly_times.models.season import DAY, rows_by_length
from anomaly_times.panel import Choice, Floats, Panel, Quantiles

__all__ = ["CANDIDATES", "WITHOUT", "Auto", "auto"]

CANDIDATES = ("seasonmix", "profile", "seasonal_naive", "holt")
"""The cheap models, the best one on the whole first."""

WITHOUT = "auto without"
"""How the notes of rows begin for which a candidate could not work."""

_LIGHT = frozenset({"profile", "seasonal_naive", "holt"})
"""So fast that they make all the past forecasts that calibration likes to have; others only those of the comparison."""
# Past forecasts to compare: at least so many, and more where they are short and so tell little and cost little.
_COMPARED, _MOST_COMPARED, _COMPARED_POINTS, _COMPARED_SLOW = 4, 8, 144, 2
_MARGIN, _ERRORS = 0.03, 2.0

Ints = npt.NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class Auto:
    """Per series, one of several models; build it with `auto`.

    Args:
        candidates: names and models, the one that stays where nothing speaks against it first.
    """

    candidates: tuple[tuple[str, Forecaster], ...]

    @property
    def slow(self) -> bool:
        """Whether a candidate fits series by series."""
        return any(getattr(model, "slow", False) for _, model in self.candidates)

    def forecast(self, history: Panel, *, h: int, quantiles: Sequence[float]) -> Quantiles:
        """Quantiles of the next `h` points; see `Forecaster.forecast`."""
        values = np.full((history.n_series, h, len(quantiles)), np.nan)
        notes: dict[int, str] = {}
        models: dict[int, Choice] = {}
        for columns, members in rows_by_length(history.y):
            part = history.rows(members).columns(slice(history.grid.n - columns, None))
            answer = self._final(part, self._choices(self._compare(part, h)), h, quantiles)
            values[members] = answer.values
            notes |= {int(members[i]): text for i, text in answer.notes.items()}
            models |= {int(members[i]): choice for i, choice in answer.models.items()}
        return Quantiles(history.labels, history.grid.following(h), tuple(quantiles), values, notes, models)

    def as_chosen(
        self, history: Panel, *, h: int, quantiles: Sequence[float], choices: Mapping[int, Choice]
    ) -> Quantiles:
        """A forecast by the models that were chosen before; see `ChoosingForecaster.as_chosen`."""
        values = np.full((history.n_series, h, len(quantiles)), np.nan)
        notes: dict[int, str] = {}
        models: dict[int, Choice] = {}
        for columns, members in rows_by_length(history.y):
            part = history.rows(members).columns(slice(history.grid.n - columns, None))
            answer = self._final(part, {i: choices[row] for i, row in enumerate(members.tolist())}, h, quantiles)
            values[members] = answer.values
            notes |= {int(members[i]): text for i, text in answer.notes.items()}
            models |= {int(members[i]): choice for i, choice in answer.models.items()}
        return Quantiles(history.labels, history.grid.following(h), tuple(quantiles), values, notes, models)

    def rolling(self, history: Panel, *, h: int, quantiles: Sequence[float]) -> tuple[Quantiles, dict[int, Floats]]:
        """A forecast, and each series' past ones by the model that it got; see `RollingForecaster.rolling`."""
        found = self._compare(history, h)
        past = {}
        alone = len(self.candidates) == 1
        cuts = found.cuts
        if alone or not self.slow:
            cuts = past_cuts(history.grid.n, h, _day(history), ORIGINS_OF_SLOW if self.slow else ORIGINS)
        for cut in cuts:
            ahead = min(h, history.grid.n - cut)
            values = np.full((history.n_series, ahead, len(SPREAD)), np.nan)
            for m, (name, model) in enumerate(self.candidates):
                rows = np.flatnonzero(found.chosen == m)
                if not rows.size:
                    continue
                if cut in found.cuts:
                    values[rows] = found.past[m][found.cuts.index(cut)][rows]
                elif alone or name in _LIGHT:
                    seen = history.rows(rows).columns(slice(cut))
                    values[rows] = model.forecast(seen, h=ahead, quantiles=SPREAD).values
            past[cut] = values
        return self._final(history, self._choices(found), h, quantiles), past

    def _compare(self, history: Panel, h: int) -> _Comparison:
        """Losses of all candidates' past forecasts, and who wins; all rows are about as long as the history."""
        cuts = past_cuts(history.grid.n, h, _day(history), ORIGINS)
        wanted = min(_MOST_COMPARED, max(_COMPARED, _COMPARED_POINTS // h)) if not self.slow else _COMPARED_SLOW
        cuts = cuts[:: -max(1, len(cuts) // wanted)][:wanted][::-1]
        loss = np.full((history.n_series, len(cuts), len(self.candidates)), np.nan)
        past: list[list[Floats]] = []
        failed: dict[str, str] = {}
        if len(self.candidates) == 1:
            cuts = ()
        for m, (name, model) in enumerate(self.candidates):
            past.append([])
            try:
                for i, cut in enumerate(cuts):
                    ahead = min(h, history.grid.n - cut)
                    values = model.forecast(history.columns(slice(cut)), h=ahead, quantiles=SPREAD).values
                    loss[:, i, m] = _pinball(history.y[:, cut : cut + ahead], values)
                    past[m].append(values)
            except ModelError as exc:
                loss[:, :, m] = np.inf
                failed[name] = exc.message
        if len(failed) == len(self.candidates):
            raise ModelError(f"no candidate works here: {next(iter(failed.values()))}", hint="name other candidates")
        return _Comparison(cuts, past, loss, failed)

    def _choices(self, found: _Comparison) -> dict[int, Choice]:
        return found.choices([name for name, _ in self.candidates])

    def _final(self, history: Panel, choices: Mapping[int, Choice], h: int, quantiles: Sequence[float]) -> Quantiles:
        values = np.full((history.n_series, h, len(quantiles)), np.nan)
        notes: dict[int, str] = {}
        # Only of those that are used: weights that do not load have no revision.
        revisions: dict[str, str] = {}
        for name, model in self.candidates:
            rows = np.array([i for i, choice in choices.items() if choice.model == name], dtype=np.intp)
            if rows.size:
                answer = model.forecast(history.rows(rows), h=h, quantiles=quantiles)
                values[rows] = answer.values
                notes |= {int(rows[i]): text for i, text in answer.notes.items()}
                revisions[name] = revision_of(name, model)
        for i, choice in choices.items():
            if choice.failed:
                text = f"{WITHOUT} " + ", ".join(f"{name} ({reason})" for name, reason in choice.failed.items())
                notes[i] = f"{text}; {notes[i]}" if i in notes else text
        models = {i: replace(choice, revision=revisions[choice.model]) for i, choice in choices.items()}
        return Quantiles(history.labels, history.grid.following(h), tuple(quantiles), values, notes, models)


class _Comparison:
    """What the candidates' past forecasts say.

    `past[m][i]` (float64[S, ahead, 3]) is what candidate `m` forecast at `SPREAD` from `cuts[i]`; `failed` says why
    candidates cannot work here; `chosen` (int[S]) is the candidate that each row gets.
    """

    def __init__(self, cuts: tuple[int, ...], past: list[list[Floats]], loss: Floats, failed: dict[str, str]) -> None:
        self.cuts, self.past, self.failed = cuts, past, failed
        self._count, self._better, self.chosen = _choose(loss)

    def choices(self, names: Sequence[str]) -> dict[int, Choice]:
        """What each row got, and why."""
        better = np.round(100 * self._better).tolist()
        # The others were held against the first that works.
        usual = next(m for m, name in enumerate(names) if name not in self.failed)
        out = {}
        for i, (m, n) in enumerate(zip(self.chosen.tolist(), self._count.tolist(), strict=True)):
            percent = dict(zip(names, better[i], strict=True))
            if n < 2:
                why = "too short for a comparison" if len(names) > 1 else "the only candidate"
            elif m == usual:
                why = f"no other was clearly better in {n} past forecasts"
            else:
                why = f"{percent[names[m]]:.0f} % better than {names[usual]} in {n} past forecasts"
            if self.failed:
                why += "".join(f"; {name} left out: {reason}" for name, reason in self.failed.items())
            losses = {name: 0.0 - p for name, p in percent.items() if np.isfinite(p)} if n >= 2 else {}
            out[i] = Choice(names[m], why, losses, failed=self.failed)
        return out


def _choose(loss: Floats) -> tuple[Ints, Floats, Ints]:
    """From losses (float64[S, cuts, M], NaN where nothing is known): cut-offs that count, advantages, and the winners.

    Advantages (float64[S, M]) are over the first candidate that works, as shares of its loss.
    """
    n_series, _, n_models = loss.shape
    works = ~np.isinf(loss).any(axis=(0, 1))
    first = int(works.argmax())
    known = np.asarray(np.isfinite(loss[:, :, works]).all(axis=2))
    count = known.sum(axis=1)
    n = np.maximum(1, count)[:, None]
    chosen = np.full(n_series, first, dtype=np.intp)
    if not loss.shape[1]:
        return count, np.zeros((n_series, n_models)), chosen
    loss = np.where(known[:, :, None] & works, loss, 0.0)
    largest = loss.max(axis=(1, 2), keepdims=True)
    loss = loss / np.where(largest > 0, largest, 1.0)
    # A cut-off that all found hard, an incident say, counts by the square root of how hard it was.
    here = loss.sum(axis=2, keepdims=True)
    loss /= np.sqrt(np.where(here > 0, here, 1.0))
    mean = loss.sum(axis=1) / n
    # Where the first is perfect the others are as much worse as they like.
    base = np.where(mean[:, first] > 0, mean[:, first], 1.0)[:, None]
    better = (mean[:, first, None] - mean) / base
    differ = np.where(known[:, :, None], loss - loss[:, :, first, None], 0.0)
    spread = np.where(known[:, :, None], differ - differ.sum(axis=1, keepdims=True) / n[:, :, None], 0.0)
    error = np.sqrt((spread**2).sum(axis=1) / np.maximum(1, n - 1) / n) / base
    lead = np.where(works & (count >= 2)[:, None], better - _MARGIN - _ERRORS * error, -np.inf)
    lead[:, first] = 0.0
    return count, np.where(works, better, np.nan), lead.argmax(axis=1)


def _pinball(y: Floats, values: Floats) -> Floats:
    """Mean pinball loss at `SPREAD` of each row, gaps left out: float64[S], NaN where nothing is known."""
    levels = np.array(SPREAD)
    with np.errstate(over="ignore", invalid="ignore"):
        error = y[:, :, None] - values
        loss = np.maximum(levels * error, (levels - 1) * error)
        known = np.isfinite(loss)
        # Infinite is what a candidate scores that does not work at all.
        total = np.minimum(np.where(known, loss, 0.0).sum(axis=(1, 2)), 1e300)
        return np.where(known.any(axis=(1, 2)), total / np.maximum(1, known.sum(axis=(1, 2))), np.nan)


def _day(history: Panel) -> int:
    return max(1, DAY // history.grid.step)


@validate_call
def auto(
    *,
    season: tuple[timedelta, ...] | None = None,
    timezone: str = "UTC",
    candidates: Annotated[list[str | dict[str, Any]], Field(min_length=1, max_length=12)] = list(CANDIDATES),  # noqa: B006
) -> Auto:
    """The best of `candidates` for each series: names, or a `type` with parameters; the first where none is better."""
    specs = [ModelSpec.model_validate({"type": each} if isinstance(each, str) else each) for each in candidates]
    if any(spec.type == "auto" for spec in specs):
        raise ValueError("auto cannot be a candidate of itself")
    if len({spec.type for spec in specs}) < len(specs):
        raise ValueError("a candidate is named twice")
    return Auto(candidates=tuple((spec.type, build_model(spec, season=season, timezone=timezone)) for spec in specs))
