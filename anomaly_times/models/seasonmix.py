"""`seasonmix`: a small network that weighs simple seasonal forecasts and adds quantiles; zero-shot, in numpy.

Trained on made-up series only (`anomaly_times.training`), so it forecasts a series that it has never seen, from its own
history alone, and nothing is fitted. `seasonmix_periods` finds the seasons, `seasonmix_features` makes the simple
forecasts; an encoder reads each series once, and at every lead a small head answers how much of each simple forecast to
take (a softmax) and how far from their mixture each quantile lies. docs/seasonmix.md is the model card.
"""

from __future__ import annotations

import hashlib
import math
import zipfile
import zlib
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from anomaly_times.durations import milliseconds
from anomaly_times.errors import ModelError
from anomaly_times.models.season import DAY, FEWEST_SLOTS, HOUR, WEEK, local_ms
from anomaly_times.models.seasonmix_features import (
    BASES,
    LEAD_FEATURES,
    STATIC_FEATURES,
    Described,
    blocks,
    describe,
)
from anomaly_times.models.seasonmix_periods import SLOTS
from anomaly_times.panel import Floats, Grid, Panel, Quantiles

__all__ = ["LEVELS", "SeasonMix", "Weights"]

LEVELS = (
    0.0005, 0.002, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.975, 0.99, 0.998, 0.9995,
)  # fmt: skip
"""The quantiles that the network answers; others are read between them."""

F32 = npt.NDArray[np.float32]
Ints = npt.NDArray[np.intp]
Layer = tuple[F32, F32]

_FILE = Path(__file__).with_name("seasonmix.npz")
_CHUNK, _CHUNK_OF_SERIES = 512, 64
_TILE = 8
"""Columns of one matrix product: of more, some processors round the first ones otherwise than those that follow."""
_SHORT = "shorter than two cycles of an hour, a day or a week"
_SHORTER = "shorter than two cycles of any season that was given"


@dataclass(frozen=True)
class Weights:
    """The network's matrices (float32[out, in]) and offsets (float32[out]), and the revision that names them."""

    encode: tuple[Layer, Layer]
    shared: Layer
    at_lead: F32
    hidden: tuple[Layer, ...]
    out: Layer
    revision: str

    def save(self, path: Path) -> None:
        """Write them in half precision, with a checksum."""
        arrays = {name: array.astype(np.float16) for name, array in self._arrays().items()}
        with path.with_suffix(".part").open("wb") as file:
            told = {"revision": np.array(self.revision), "checksum": np.array(_checksum(self.revision, arrays))}
            np.savez_compressed(file, allow_pickle=False, **told, **arrays)
        path.with_suffix(".part").replace(path)

    @classmethod
    def load(cls, path: Path) -> Weights:
        """Read and check them.

        Raises:
            ModelError: if the file is missing, broken or made for other features.
        """
        hint = "install the package again"
        try:
            with zipfile.ZipFile(path) as packed:
                if damaged := packed.testzip():
                    raise zipfile.BadZipFile(f"{damaged} is damaged")
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            revision, checksum = str(arrays.pop("revision")), str(arrays.pop("checksum"))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as exc:
            raise ModelError(f"the weights {path.name} cannot be read: {exc}", hint=hint) from exc
        if checksum != _checksum(revision, arrays):
            raise ModelError(f"the weights {path.name} do not have the checksum that they say", hint=hint)
        wide = {name: array.astype(np.float32) for name, array in arrays.items()}
        try:
            weights = cls(
                encode=((wide["encode.0"], wide["encode.0.b"]), (wide["encode.1"], wide["encode.1.b"])),
                shared=(wide["shared"], wide["shared.b"]),
                at_lead=wide["at_lead"],
                hidden=tuple((wide[f"hidden.{i}"], wide[f"hidden.{i}.b"]) for i in range(2)),
                out=(wide["out"], wide["out.b"]),
                revision=revision,
            )
        except KeyError as exc:
            raise ModelError(f"the weights {path.name} lack {exc}", hint=hint) from exc
        made_for = weights.encode[0][0].shape[1], weights.at_lead.shape[1], len(weights.out[0])
        if made_for != (STATIC_FEATURES, LEAD_FEATURES, len(LEVELS) + len(BASES)):
            raise ModelError(f"the weights {path.name} were made for another version", hint=hint)
        return weights

    def _arrays(self) -> dict[str, F32]:
        layers = {"shared": self.shared, "out": self.out}
        layers |= {f"encode.{i}": layer for i, layer in enumerate(self.encode)}
        layers |= {f"hidden.{i}": layer for i, layer in enumerate(self.hidden)}
        out = {"at_lead": self.at_lead}
        for name, (matrix, offset) in layers.items():
            out[name], out[f"{name}.b"] = matrix, offset
        return out

    def answer(self, told: Described) -> F32:
        """Quantiles at `LEVELS` in units relative to the reference: float32[len(LEVELS), S, L], rising along axis 0."""
        n_series, n_leads = told.reference.shape
        encoded = [self._encoded(chunk) for chunk in _chunks(told.static.T, _CHUNK_OF_SERIES)]
        shared = np.concatenate([_untiled(chunk) for chunk in encoded], axis=1)
        of_series = np.repeat(np.arange(n_series), n_leads)
        points = zip(
            _chunks(of_series[None], _CHUNK),
            _chunks(told.lead.reshape(len(told.lead), -1), _CHUNK),
            _chunks(told.bases.reshape(len(BASES), -1), _CHUNK),
            strict=True,
        )
        answers = [
            self._head(np.moveaxis(shared[:, series[:, 0]], 0, 1), lead, bases) for series, lead, bases in points
        ]
        out = np.concatenate([_untiled(answer) for answer in answers], axis=1)[:, : n_series * n_leads]
        return out.reshape(len(LEVELS), n_series, n_leads)

    def _encoded(self, static: F32) -> F32:
        x = _relu(self.encode[0][0] @ static + self.encode[0][1][:, None])
        x += _relu(self.encode[1][0] @ x + self.encode[1][1][:, None])
        return self.shared[0] @ x + self.shared[1][:, None]

    def _head(self, shared: F32, lead: F32, bases: F32) -> F32:
        x = self.at_lead @ lead
        x += shared
        _relu(x)
        for matrix, offset in self.hidden:
            more = matrix @ x
            more += offset[:, None]
            x += _relu(more)
        answer = self.out[0] @ x
        answer += self.out[1][:, None]
        distance, logits = answer[:, : len(LEVELS)], answer[:, len(LEVELS) :]
        logits -= logits.max(axis=1, keepdims=True)
        share = np.exp(logits, out=logits)
        total = share.sum(axis=1, keepdims=True)
        share *= bases
        distance += share.sum(axis=1, keepdims=True) / total
        # Rising outwards from the median, which is the best known of them.
        middle = len(LEVELS) // 2
        upward, downward = distance[:, middle:], distance[:, middle::-1]
        np.maximum.accumulate(upward, axis=1, out=upward)
        np.minimum.accumulate(downward, axis=1, out=downward)
        return distance


def _checksum(revision: str, arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """SHA-256 over the revision and over the name, type, shape and bytes of every array."""
    digest = hashlib.sha256(revision.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _chunks(x: npt.NDArray[Any], size: int) -> Iterator[npt.NDArray[Any]]:
    """The columns of `x`, `size` at a time in tiles, [size / 8, len(x), 8], the last chunk filled up with zeros.

    Matrix products of one shape round alike, so no result depends on how many others are computed beside it.
    """
    for first in range(0, x.shape[1], size):
        part = x[:, first : first + size]
        if part.shape[1] < size:
            part = np.concatenate([part, np.zeros((len(x), size - part.shape[1]), dtype=x.dtype)], axis=1)
        yield np.ascontiguousarray(np.moveaxis(part.reshape(len(x), -1, _TILE), 1, 0))


def _untiled(x: F32) -> F32:
    """The columns of tiles side by side: [rows, columns]."""
    return np.moveaxis(x, 1, 0).reshape(x.shape[1], -1)


def _relu(x: F32) -> F32:
    return np.maximum(x, 0, out=x)


@lru_cache(maxsize=1)
def _weights() -> Weights:
    return Weights.load(_FILE)


@dataclass(frozen=True, kw_only=True)
class SeasonMix:
    """The network that ships with the package; see the module's text.

    Args:
        season: the periods to use; of more than three, the three longest that the history holds twice. `None` finds
            them, the hour, the day and the week first.
        timezone: IANA name of the clock that days begin by.
    """

    season: tuple[timedelta, ...] | None = None
    timezone: str = "UTC"

    @property
    def revision(self) -> str:
        """Which weights answer."""
        return _weights().revision

    def forecast(self, history: Panel, *, h: int, quantiles: Sequence[float]) -> Quantiles:
        """Quantiles of the next `h` points; see `Forecaster.forecast`."""
        weights = _weights()
        y, by_clock = _by_the_clock(history, h, self.timezone)
        leads = np.arange(1, h + 1)
        step = history.grid.step
        calendar = tuple(p // step for p in (HOUR, DAY, WEEK) if p % step == timedelta(0) and p // step >= FEWEST_SLOTS)
        season = None if self.season is None else self._given(step, y.shape[1])
        slots = [p / step for p in self.season or (HOUR, DAY, WEEK) if p / step >= FEWEST_SLOTS]
        shortest, short = 2 * min(slots, default=0.0), _SHORT if self.season is None else _SHORTER
        values = np.full((history.n_series, h, len(quantiles)), np.nan)
        notes: dict[int, str] = {}
        for block in blocks(y, h):
            late = block.late[:, None]
            told = describe(block.y, leads + late, calendar, season, by_clock + late)
            values[block.rows] = _unscaled(told, weights.answer(told), quantiles)
            if self.season != ():
                notes.update(dict.fromkeys(block.rows[told.length < shortest].tolist(), short))
        return Quantiles(history.labels, history.grid.following(h), tuple(quantiles), values, notes)

    def _given(self, step: timedelta, n_points: int) -> tuple[int, ...]:
        """The periods that were given and fit, in steps."""
        steps = sorted(round(period / step) for period in self.season or () if period >= 2 * step)
        held = [period for period in steps if 2 * period <= n_points]
        return tuple((held or steps)[-SLOTS:])


def _by_the_clock(history: Panel, h: int, timezone: str) -> tuple[Floats, Ints]:
    """The history as a clock in `timezone` tells it (float64[S, T]), and how far ahead the `h` points lie by it.

    Where clocks went forward an hour is missing there, a gap; where they went back the later of two hours stays. So a
    day is as long as any other, and a lag of one day is the same time of day.
    """
    grid = history.grid
    clock = local_ms(Grid(grid.start, grid.step, grid.n + h), timezone)
    # Offsets that are no whole steps are rounded, so a step of seven minutes is off by a few around a change.
    place = np.rint((clock - clock[grid.n - 1]) / milliseconds(grid.step)).astype(np.intp)
    past, ahead = place[: grid.n], place[grid.n :]
    if past[0] == 1 - grid.n and np.all(np.diff(past) == 1):
        return history.y, ahead
    y = np.full((history.n_series, 1 - int(past.min())), np.nan)
    # Later columns overwrite earlier ones at the same place, and none lies after the last.
    y[:, np.minimum(past, 0) - 1] = history.y
    # The hour that comes twice right after the last value has no other place than its distance.
    return y, np.where(ahead > 0, ahead, np.arange(1, h + 1))


@lru_cache(maxsize=256)
def _between(quantile: float) -> tuple[int, int, float]:
    """Two positions in `LEVELS` and how far from the first to the second, and perhaps past it, `quantile` lies.

    Linear in the normal quantile of the level between two of them. Beyond the outermost an exponential tail goes on, as
    in `tail_quantiles`, with the scale that the outermost two say.
    """
    last = len(LEVELS) - 1
    for inner, outer, beyond in ((1, 0, quantile), (last - 1, last, 1 - quantile)):
        near, far = (min(LEVELS[i], 1 - LEVELS[i]) for i in (inner, outer))
        if beyond < far:
            return inner, outer, math.log(near / beyond) / math.log(near / far)
    above = min(max(1, bisect_left(LEVELS, quantile)), last)
    low, here, high = (NormalDist().inv_cdf(q) for q in (LEVELS[above - 1], quantile, LEVELS[above]))
    return above - 1, above, (here - low) / (high - low)


def _unscaled(told: Described, answer: F32, quantiles: Sequence[float]) -> Floats:
    """Answers at the levels asked for, in the unit of the series: float64[S, h, Q]."""
    out = np.empty((*told.reference.shape, len(quantiles)))
    limit = np.finfo(np.float64).max
    with np.errstate(over="ignore"):
        for i, quantile in enumerate(quantiles):
            first, second, share = _between(quantile)
            value = answer[first].astype(np.float64)
            value += share * (answer[second] - value)
            value *= told.unit
            value += told.reference
            value *= told.scale
            value += told.center
            np.clip(value, -limit, limit, out=out[:, :, i])
    return out
