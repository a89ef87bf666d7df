"""The score of the Numenta Anomaly Benchmark, and the detector that it is checked with.

Lavin & Ahmad, Evaluating Real-time Anomaly Detection Algorithms, ICMLA 2015, section II, profile `standard`. For each
of its detectors the benchmark publishes what every file adds to the score; ours gives the same numbers for
`windowed_gaussian`, whose 58 files make −24.013 together, which is 39.6 per cent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from anomaly_times.panel import Floats

Bools = npt.NDArray[np.bool_]

FALSE_ALARM = 0.11
_WINDOW, _STEP = 6400, 100
# Scores are published with twelve digits, and the threshold is 1: what rounds to it is over it.
_CERTAIN = 5e-13


@dataclass(frozen=True, eq=False)
class NabFile:
    """One series of NAB: its row of the panel, the column of each line of its file, windows in lines (inclusive)."""

    name: str
    row: int
    columns: npt.NDArray[np.intp]
    windows: tuple[tuple[int, int], ...]

    @property
    def probation(self) -> int:
        """The first lines, 15 per cent and 750 at most, do not count."""
        return int(min(0.15 * len(self.columns), 750))


def nab_score(hot: Sequence[Bools], files: Sequence[NabFile]) -> float:
    """In per cent: 0 for a detector that says nothing, 100 for a perfect one.

    `hot` says of each file's lines which are called anomalous.
    """
    total = sum(len(file.windows) for file in files)
    raw = sum(file_score(flags, file) for flags, file in zip(hot, files, strict=True))
    return 100 * (raw + total) / (2 * total)


def file_score(flags: Bools, file: NabFile) -> float:
    """What a file adds to the score.

    The first detection in a window counts by a sigmoid of its place in it, one outside by −0.11 times a sigmoid of how
    far behind the last window it lies, a window without one by −1.
    """
    lines = np.flatnonzero(flags)
    lines = lines[lines >= file.probation]
    inside = np.zeros(len(lines), dtype=np.bool_)
    raw = 0.0
    for first, last in file.windows:
        within = (lines >= first) & (lines <= last)
        inside |= within
        if within.any():
            raw += _sigmoid((lines[within][0] - last - 1) / (last - first + 1)) / _sigmoid(-1.0)
        elif last >= file.probation:
            raw -= 1.0
    for line in lines[~inside]:
        before = [(first, last) for first, last in file.windows if last < line]
        first, last = before[-1] if before else (0, 0)
        raw += FALSE_ALARM * (_sigmoid((line - last) / (last - first)) if before else -1.0)
    return raw


def _sigmoid(place: float) -> float:
    """NAB's scaled sigmoid: 1 well inside, 0 at the end of a window, −1 beyond three of its widths."""
    return -1.0 if place >= 3 else float(2 / (1 + np.exp(5 * place)) - 1)


def windowed_gaussian(values: Floats) -> Bools:
    """What NAB's detector `windowedGaussian` calls anomalous at its published threshold: bool[T].

    Values further from the mean of 6,400 before them than all but a share of 5e-13 of normal ones; the window grows
    with every value until it is full, and then moves on by a hundred.
    """
    far = NormalDist().inv_cdf(1 - _CERTAIN)
    hot = np.zeros(len(values), dtype=np.bool_)
    for end in range(1, min(_WINDOW, len(values) - 1) + 1):
        hot[end] = _far_off(values[end : end + 1], values[:end], far)[0]
    starts = range(_WINDOW + 1, len(values) + _STEP, _STEP)
    for number, (first, stop) in enumerate(pairwise(starts)):
        window = values[number * _STEP : number * _STEP + _WINDOW]
        hot[first - 1 : stop - 1] = _far_off(values[first - 1 : stop - 1], window, far)
    return hot


def _far_off(values: Floats, window: Floats, far: float) -> Bools:
    return np.asarray(np.abs(values - window.mean()) >= far * (window.std() or 1e-6))
