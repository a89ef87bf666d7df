"""What is sent to a server: several metrics of many series at the same times, cut into requests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from anomaly_times.conventions import channel_labels
from anomaly_times.panel import Floats, Labels

__all__ = ["MAX_BYTES", "Samples", "joined"]

MAX_BYTES = 2_000_000
"""Of one request before it is compressed, unless one series alone is larger: about 10,000 scores.

VictoriaMetrics takes 32 MiB, gateways before it often less.
"""


_SAMPLES = 10_000


@dataclass(frozen=True, eq=False)
class Samples:
    """`values[i, m, t]` is the sample of metric `metrics[m]` with `labels[i]` at `timestamps[t]`.

    `labels` are without `__name__`, which is the metric; `timestamps` are milliseconds since the epoch, int64[T],
    strictly rising; `values` is float64[S, M, T], and what is not finite in it is never sent. Where there are
    `channels`, one a metric, a metric is sent with `conventions.channel_labels`, less those whose channel is empty.

    Raises:
        ValueError: if the shapes do not fit, or the timestamps do not rise.
    """

    metrics: tuple[str, ...]
    labels: Sequence[Labels]
    timestamps: npt.NDArray[np.int64]
    values: Floats
    channels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape = (len(self.labels), len(self.metrics), len(self.timestamps))
        if self.values.shape != shape:
            raise ValueError(f"Samples.values is {self.values.shape}, not {shape}")
        if self.channels and len(self.channels) != len(self.metrics):
            raise ValueError(f"{len(self.channels)} channels for {len(self.metrics)} metrics")
        if (self.timestamps[1:] <= self.timestamps[:-1]).any():
            raise ValueError("timestamps must rise: servers take the samples of a series in time order only")

    def __getitem__(self, rows: slice) -> Samples:
        """The series of `rows`; views, not copies."""
        return replace(self, labels=self.labels[rows], values=self.values[rows])

    def kinds(self) -> tuple[tuple[str, str], ...]:
        """Each metric with its channel, empty where it has none."""
        return tuple(zip(self.metrics, self.channels or ("",) * len(self.metrics), strict=True))

    def series(self, row: int, metric: int) -> Labels:
        """The labels, less the name, under which one metric of one row is sent."""
        channel = self.channels[metric] if self.channels else ""
        return channel_labels(self.labels[row], channel) if channel else self.labels[row]

    def where(self, keep: npt.NDArray[np.bool_]) -> Samples:
        """The series where `keep`, bool[S], is true."""
        if keep.all():
            return self
        rows = np.flatnonzero(keep).tolist()
        return replace(self, labels=[self.labels[i] for i in rows], values=self.values[rows])

    def by_time(self) -> Iterator[Samples]:
        """The same in order of time, so that each part fits into about one request; all series are in each part."""
        columns = max(1, _SAMPLES // max(1, len(self.labels) * len(self.metrics)))
        for first in range(0, len(self.timestamps), columns):
            part = slice(first, first + columns)
            yield replace(self, timestamps=self.timestamps[part], values=self.values[:, :, part])

    def cuts(self, row_bytes: Sequence[int], *, per_sample: int) -> Iterator[slice]:
        """Rows that fit into one request each, in order; rows without anything finite may be in none.

        A series is never torn: all its metrics and times go together, so a request that did not arrive leaves whole
        series out.

        Args:
            row_bytes: what one metric of each series takes, less its samples, at most.
            per_sample: bytes of one sample, at most.
        """
        finite = np.isfinite(self.values)
        counts, series = finite.sum(axis=(1, 2)), finite.any(axis=2).sum(axis=1)
        sizes = series * np.asarray(row_bytes, dtype=np.int64) + counts * per_sample
        samples = np.concatenate(([0], np.cumsum(counts)))
        size = np.concatenate(([0], np.cumsum(sizes)))
        first = 0
        while first < len(self.labels):
            stop = max(int(np.searchsorted(size, size[first] + MAX_BYTES, side="right")) - 1, first + 1)
            if samples[stop] > samples[first]:
                yield slice(first, stop)
            first = stop


def joined(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Neighbouring `pieces` put together up to the size of a request: many small missions travel as one."""
    held: list[bytes] = []
    size = 0
    for piece in pieces:
        if held and size + len(piece) > MAX_BYTES:
            yield b"".join(held)
            held, size = [], 0
        held.append(piece)
        size += len(piece)
    if held:
        yield b"".join(held)
