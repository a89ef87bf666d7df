"""VictoriaMetrics' own `/api/v1/import`: a JSON line a series, gzip-compressed.

Format: https://docs.victoriametrics.com/#json-line-format. Larger and slower than Remote Write; for servers and proxies
where only this path is open.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

import cramjam
import msgspec
import numpy as np

from anomaly_times.conventions import LABEL_CHANNEL
from anomaly_times.panel import Labels
from anomaly_times.stores.samples import Samples, joined

__all__ = ["HEADERS", "encode"]

HEADERS = {"Content-Type": "application/x-ndjson", "Content-Encoding": "gzip"}
"""What goes with every body."""


# A double takes up to 24 characters, a time 20, each with a comma.
_LONGEST = 46


def encode(blocks: Iterable[Samples]) -> Iterator[bytes]:
    """The bodies of the requests that carry `blocks`, in their order; none where nothing is finite."""
    for body in joined(piece for samples in blocks for piece in _pieces(samples)):
        yield bytes(cramjam.gzip.compress(body, level=1))


def _pieces(samples: Samples) -> Iterator[bytes]:
    labels = [_label_json(row) for row in samples.labels]
    name = 64 + 64 * any(samples.channels) + max((len("".join(kind)) for kind in samples.kinds()), default=0)
    for rows in samples.cuts([name + len(row) for row, _ in labels], per_sample=_LONGEST):
        yield _lines(samples[rows], labels[rows])


def _lines(samples: Samples, labels: list[tuple[bytes, bool]]) -> bytes:
    finite = np.isfinite(samples.values)
    whole: list[list[bool]] = np.all(finite, axis=2).tolist()
    all_times = msgspec.json.encode(samples.timestamps.tolist())
    kinds = [
        (b'"' + metric.encode() + b'"', _pair(LABEL_CHANNEL, channel) if channel else b"")
        for metric, channel in samples.kinds()
    ]
    parts: list[bytes] = []
    for i, (row, has_channel) in enumerate(labels):
        for m, (name, channel) in enumerate(kinds):
            values, times = samples.values[i, m], all_times
            if not whole[i][m]:
                kept = finite[i, m]
                if not kept.any():
                    continue
                values, times = values[kept], msgspec.json.encode(samples.timestamps[kept].tolist())
            numbers = msgspec.json.encode(values.tolist())
            pairs = _label_json(samples.series(i, m))[0] if channel and has_channel else row + channel
            parts += (b'{"metric":{"__name__":', name, pairs, b'},"values":', numbers, b',"timestamps":', times)
            parts.append(b"}\n")
    return b"".join(parts)


def _pair(name: str, value: str) -> bytes:
    """One more member of a JSON object."""
    return b"," + msgspec.json.encode(name) + b":" + msgspec.json.encode(value)


# The same series are written minute after minute.
@lru_cache(maxsize=200_000)
def _label_json(labels: Labels) -> tuple[bytes, bool]:
    """The labels as the rest of a JSON object that has a member already, and whether one is called `channel`."""
    return b"".join(_pair(name, value) for name, value in labels), any(name == LABEL_CHANNEL for name, _ in labels)
