"""What belongs to evidence over time in a store: the limits of a forecast, and what is kept beside each score.

Both are rows of numbers a series, of one *kind* each: a metric, or a column, for one channel. What a store wrote last
it need not read again, as long as nobody else wrote: `Recalled`.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from anomaly_times.conventions import (
    EVIDENCE,
    INCIDENT,
    LABEL_CHANNEL,
    LIMIT,
    MOVE,
    REASON,
    SCORE,
    USUAL,
    channel_labels,
)
from anomaly_times.evidence import CHANNELS, KEPT, remembered
from anomaly_times.mission import Mission
from anomaly_times.panel import Evidence, Floats, Grid, Labels, Limits, Panel, Scores, round_significant

__all__ = [
    "LIMITS",
    "READ_BACK",
    "SCORED",
    "Kind",
    "Recalled",
    "evidence_of",
    "limit_numbers",
    "limits_of",
    "places",
    "score_numbers",
    "without_score",
]

Kind = tuple[str, str]
"""A metric and its channel, which is empty where it has none."""

LIMITS: tuple[Kind, ...] = (*((LIMIT, channel) for channel in KEPT), (USUAL, KEPT[0]), (MOVE, ""))
"""What is stored of a series' limits; all else of them is the same for every series."""
SCORED: tuple[Kind, ...] = ((REASON, ""), *((EVIDENCE, channel) for channel in KEPT), (INCIDENT, ""), (SCORE, ""))
"""A score, after all that is stored beside it."""
READ_BACK = SCORED[1:]
"""What evidence is read back from: it counts only where its score is."""
_USUAL = np.array([0.0, 0.5, 1.0, 0.0, 0.0])
_CADENCES_RECALLED = 4


def limit_numbers(limits: Limits) -> Floats:
    """The numbers of `limits` (with n = 1) by kind of `LIMITS`: float64[6, S], NaN for what is not stored."""
    numbers = np.concatenate([limits.limit[1:, :, 0], limits.usual[1:2, :, 0], limits.move[None, :, 0]])
    return np.where(np.isfinite(numbers), numbers, np.nan)


def limits_of(numbers: Floats) -> Limits:
    """The limits of which `numbers` (float64[6, S, n], by kind of `LIMITS`) are stored."""
    n_kept, shape = len(KEPT), numbers.shape[1:]
    limit = np.ones((len(CHANNELS), *shape))
    limit[1:] = np.where(np.isfinite(numbers[:n_kept]), numbers[:n_kept], np.inf)
    usual = np.broadcast_to(_USUAL[:, None, None], limit.shape).copy()
    usual[1] = np.where(np.isfinite(numbers[n_kept]), numbers[n_kept], usual[1])
    return Limits(usual, limit, numbers[n_kept + 1])


def score_numbers(scores: Scores) -> Floats:
    """What is to be stored of `scores` by kind of `SCORED`: float64[7, S, T], NaN where there is nothing."""
    out = np.full((len(SCORED), *scores.score.shape), np.nan)
    reason, evidence, incident, score = out[0], out[1:5], out[5], out[6]
    score[:] = scores.score
    if scores.evidence is not None:
        # Nine digits name a number of single precision exactly.
        evidence[:] = round_significant(scores.evidence)
        evidence[-1] = np.where(evidence[-1] >= 1, evidence[-1], np.nan)
    if scores.incident is not None:
        incident[:] = np.where(scores.incident > 1, round_significant(scores.incident), np.nan)
    if scores.reason is not None:
        reason[:] = scores.reason
    return without_score(out, scores.score)


def without_score(numbers: Floats, score: Floats) -> Floats:
    """`numbers` (float64[K, S, T]) where they are finite and there is a score (float64[S, T]), NaN elsewhere."""
    return np.asarray(np.where(np.isfinite(score) & np.isfinite(numbers), numbers, np.nan))


def evidence_of(labels: Sequence[Labels], grid: Grid, numbers: Floats) -> Evidence | None:
    """The evidence of which `numbers` (float64[6, S, T], by kind of `READ_BACK`) are stored; `None` where none is."""
    values, incident = numbers[: len(KEPT)], numbers[len(KEPT)]
    there = np.isfinite(values).any(axis=(0, 2)) | np.isfinite(incident).any(axis=1)
    if not there.any():
        return None
    if not there.all():
        rows = np.flatnonzero(there)
        labels, values, incident = [labels[i] for i in rows.tolist()], values[:, rows], incident[rows]
    values = values.copy()
    flat = values[-1]
    flat[np.isnan(flat) & np.isfinite(values[0])] = 0.0
    return Evidence(tuple(labels), grid, values, incident)


def places(labels: Sequence[Labels], kinds: Sequence[Kind]) -> dict[tuple[tuple[str, str], ...], tuple[int, int]]:
    """By stored label set, with its `__name__`, the kind and the row of what is stored of series with these `labels`.

    The inverse of `channel_labels`, for the series that there are: no label set is ever taken apart.
    """
    pairs = [((("__name__", metric),), ((LABEL_CHANNEL, channel),) if channel else ()) for metric, channel in kinds]
    found: dict[tuple[tuple[str, str], ...], tuple[int, int]] = {}
    for i, row in enumerate(labels):
        # Ten times faster than to sort each label set anew: a pass of a new process does this for every series.
        first, second = bisect_left(row, ("__name__",)), bisect_left(row, (LABEL_CHANNEL,))
        before, between, after = tuple(row[:first]), tuple(row[first:second]), tuple(row[second:])
        has_channel = bool(after) and after[0][0] == LABEL_CHANNEL
        for kind, (name, channel) in enumerate(pairs):
            if channel and has_channel:
                own = channel_labels(row, channel[0][1])
                found[Labels(sorted((*own, *name)))] = kind, i
            else:
                found[before + name + between + channel + after] = kind, i
    return found


@dataclass(frozen=True, eq=False)
class _Known:
    """What is stored of a mission at the times of `grid`: `numbers` is float64[6, S, T], by kind of `READ_BACK`.

    `proven` is the time (epoch ms) up to which the scores were seen to be these; `rows` are those of the label sets
    `written` last.
    """

    labels: tuple[Labels, ...]
    grid: Grid
    numbers: Floats
    proven: int | None = None
    written: tuple[Labels, ...] = ()
    rows: npt.NDArray[np.intp] = field(default_factory=lambda: np.empty(0, dtype=np.intp))


class Recalled:
    """What a store read and wrote of evidence last, so that a pass which follows its own need not read it again.

    It counts only where the scores that were read just before are, point by point, the ones known here: then nobody
    else wrote, for a writer of evidence writes scores with it. Each proof is good for one use.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, _Known] = {}

    def learn(self, mission: str, labels: tuple[Labels, ...], grid: Grid, numbers: Floats) -> None:
        """`numbers` (float64[6, S, T]: evidence, incident, score) are all that is stored at the times of `grid`."""
        with self._lock:
            self._known[mission] = _Known(labels, grid, numbers)

    def confirm(self, missions: Iterable[Mission], grid: Grid, found: Mapping[str, Panel]) -> None:
        """Compare what is known with the scores `found` at the times of `grid`; what differs is known no more."""
        with self._lock:
            for mission in missions:
                known = self._known.pop(mission.name, None)
                if known is None or known.grid.step != grid.step or grid.start > known.grid.end + grid.step:
                    continue
                agreed = _agreed(known, grid, found.get(mission.name))
                if agreed is not None:
                    self._known[mission.name] = agreed

    def recall(self, mission: str, grid: Grid) -> tuple[tuple[Labels, ...], Floats] | None:
        """Label sets and float64[6, S, T] of what is stored at the times of `grid`; `None` where that is not sure."""
        with self._lock:
            known = self._known.get(mission)
            if known is None or known.proven is None or grid.step != known.grid.step:
                return None
            if grid.start < known.grid.start or int(grid.epoch_ms()[-1]) > known.proven:
                return None
            self._known[mission] = replace(known, proven=None)
            return known.labels, _on(grid, known.grid, known.numbers)

    def extend(self, mission: Mission, labels: tuple[Labels, ...], grid: Grid, numbers: Floats) -> None:
        """What was written now: `numbers` is float64[6, S, T], NaN for what was not."""
        with self._lock:
            known = self._known.pop(mission.name, None)
            if known is None or not grid.n or grid.step != known.grid.step:
                return
            if grid.start > known.grid.end + grid.step:
                return
            if labels != known.written:
                known = _with_rows(known, labels)
            end = max(known.grid.end, grid.end)
            cadence = max(mission.detect.period, grid.step)
            start = end - remembered(grid.step) * grid.step - _CADENCES_RECALLED * cadence
            whole = Grid.covering(max(start, known.grid.start), end, grid.step)
            kept, new = _on(whole, known.grid, known.numbers), _on(whole, grid, numbers)
            scored = np.isfinite(new[-1])
            kept[:, known.rows] = np.where(scored, new, kept[:, known.rows])
            self._known[mission.name] = replace(known, grid=whole, numbers=kept, proven=None)

    def forget(self, missions: Iterable[Mission]) -> None:
        """Nothing is known of these."""
        with self._lock:
            for mission in missions:
                self._known.pop(mission.name, None)


def _agreed(known: _Known, grid: Grid, found: Panel | None) -> _Known | None:
    """`known`, proven by the scores `found`; `None` where they are others."""
    first = max(0, grid.index(known.grid.start))
    if found is None:
        found = Panel((), grid, np.empty((0, grid.n)))
    seen = found.y[:, first:]
    expected = _on(grid[first:], known.grid, known.numbers[-1])
    labels = known.labels
    if found.labels == labels:
        # The same objects come with the next answer, and are quick to compare.
        labels = found.labels
    else:
        row = {each: i for i, each in enumerate(labels)}
        whole = np.full(expected.shape, np.nan)
        for each, values in zip(found.labels, seen, strict=True):
            at = row.get(each)
            if at is not None:
                whole[at] = values
            elif np.isfinite(values).any():
                return None
        seen = whole
    if not np.array_equal(seen, expected, equal_nan=True):
        return None
    return replace(known, labels=labels, proven=int(grid.epoch_ms()[-1]))


def _with_rows(known: _Known, written: tuple[Labels, ...]) -> _Known:
    """`known` with a row for each label set that is `written` too."""
    there = set(known.labels)
    new = [row for row in written if row not in there]
    labels, numbers = known.labels, known.numbers
    if new:
        both = (*labels, *new)
        order = sorted(range(len(both)), key=both.__getitem__)
        labels = tuple(both[i] for i in order)
        empty = np.full((len(numbers), len(new), known.grid.n), np.nan)
        numbers = np.concatenate([numbers, empty], axis=1)[:, order]
    row = {each: i for i, each in enumerate(labels)}
    rows = np.array([row[each] for each in written], dtype=np.intp)
    return replace(known, labels=labels, numbers=numbers, written=written, rows=rows)


def _on(want: Grid, have: Grid, numbers: Floats) -> Floats:
    """`numbers` (float64[…, have.n]) at the times of `want`, a grid of the same step; NaN where there are none."""
    out = np.full((*numbers.shape[:-1], want.n), np.nan)
    shift = want.index(have.start)
    first, stop = max(0, shift), min(want.n, shift + have.n)
    if first < stop:
        out[..., first:stop] = numbers[..., first - shift : stop - shift]
    return out
