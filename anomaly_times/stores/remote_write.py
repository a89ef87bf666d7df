"""Remote Write 1.0: samples as snappy-compressed protobuf, what every Prometheus-compatible server takes.

Specification: https://prometheus.io/docs/specs/prw/remote_write_spec/. The message, by field number:
`WriteRequest{1: TimeSeries*}`, `TimeSeries{1: Label*, 2: Sample*}`, `Label{1: name, 2: value}`,
`Sample{1: double value, 2: int64 timestamp in ms}`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

import cramjam
import numpy as np
import numpy.typing as npt

from anomaly_times.conventions import LABEL_CHANNEL
from anomaly_times.panel import Labels
from anomaly_times.stores.samples import Samples, joined

__all__ = ["HEADERS", "encode"]

HEADERS = {
    "Content-Type": "application/x-protobuf",
    "Content-Encoding": "snappy",
    "X-Prometheus-Remote-Write-Version": "0.1.0",
}
"""What goes with every body."""

# A sample is `tag length | tag value(8 bytes, little-endian) | tag timestamp(varint)`.
_VALUE = slice(3, 11)
_TIME = 12
_LONGEST = _TIME + 10
_CHANNEL = LABEL_CHANNEL.encode()

_LabelBytes = tuple[bytes, bytes, bytes, bool]


def encode(blocks: Iterable[Samples]) -> Iterator[bytes]:
    """The bodies of the requests that carry `blocks`, in their order; none where nothing is finite."""
    # Protobuf messages with repeated fields merge when their bytes follow each other.
    for body in joined(piece for samples in blocks for piece in _write_requests(samples)):
        yield bytes(cramjam.snappy.compress_raw(body))


def _write_requests(samples: Samples) -> Iterator[bytes]:
    labels = [_label_bytes(row) for row in samples.labels]
    # A channel adds its own pair, and a prefix to a label that makes room for it.
    name = 32 + 64 * any(samples.channels) + max((len("".join(kind)) for kind in samples.kinds()), default=0)
    sizes = [name + len(before) + len(between) + len(after) for before, between, after, _ in labels]
    for rows in samples.cuts(sizes, per_sample=_LONGEST):
        yield _write_request(samples[rows], labels[rows])


def _write_request(samples: Samples, labels: list[_LabelBytes]) -> bytes:
    frames, ends = _sample_frames(samples)
    kinds = [
        (_label(b"__name__", metric.encode()), _label(_CHANNEL, channel.encode()) if channel else b"")
        for metric, channel in samples.kinds()
    ]
    parts: list[bytes] = []
    start, at = 0, 0
    for i, (before, between, after, has_channel) in enumerate(labels):
        for m, (name, channel) in enumerate(kinds):
            end = ends[at]
            at += 1
            if end == start:
                continue
            if channel and has_channel:
                first, second, third, _ = _label_bytes(samples.series(i, m))
                series = first + name + second + third + frames[start:end]
            else:
                # A third faster than to add them.
                series = b"%b%b%b%b%b%b" % (before, name, between, channel, after, frames[start:end])
            parts += (b"\x0a", _varint(len(series)), series)
            start = end
    return b"".join(parts)


def _sample_frames(samples: Samples) -> tuple[bytes, list[int]]:
    """All encoded samples one after the other, and where those of each row (series by series, metric by metric) end."""
    times, widths = _varints(samples.timestamps)
    template = np.zeros((len(times), _TIME + times.shape[1]), dtype=np.uint8)
    template[:, 0] = 0x12
    template[:, 1] = 10 + widths
    template[:, 2] = 0x09
    template[:, 11] = 0x10
    template[:, _TIME:] = times

    values = samples.values.reshape(-1, len(times))
    finite = np.isfinite(values)
    columns = np.nonzero(finite)[1]
    frames = template[columns]
    frames[:, _VALUE] = values[finite].astype("<f8").view(np.uint8).reshape(-1, 8)
    ends = np.cumsum(finite.sum(axis=1))
    if (widths == times.shape[1]).all():
        return frames.tobytes(), (ends * template.shape[1]).tolist()
    # Timestamps of unlike length (before 2004, after 2109, negative): cut the padding out.
    used = np.arange(template.shape[1]) < (_TIME + widths[columns])[:, None]
    bytes_until = np.concatenate(([0], np.cumsum(used.sum(axis=1))))
    return frames[used].tobytes(), bytes_until[ends].tolist()


def _varints(numbers: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Each number as a varint, zero-padded to the longest, and their lengths; a negative one takes ten bytes."""
    rest = numbers.astype(np.uint64)[:, None] >> (np.uint64(7) * np.arange(10, dtype=np.uint64))
    widths = np.maximum((rest != 0).sum(axis=1), 1)
    out = (rest & np.uint64(0x7F)).astype(np.uint8)
    out[np.arange(10) < (widths - 1)[:, None]] |= 0x80
    return out[:, : widths.max(initial=1)], widths


@lru_cache(maxsize=4096)
def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _label(name: bytes, value: bytes) -> bytes:
    pair = b"\x0a" + _varint(len(name)) + name + b"\x12" + _varint(len(value)) + value
    return b"\x0a" + _varint(len(pair)) + pair


# The same series are written minute after minute.
@lru_cache(maxsize=200_000)
def _label_bytes(labels: Labels) -> _LabelBytes:
    """The encoded labels that sort before `__name__`, up to `channel`, and after: the protocol wants names in order.

    And whether there is a label `channel` among the last.
    """
    encoded = [(name, _label(name.encode(), value.encode())) for name, value in labels]
    return (
        b"".join(pair for name, pair in encoded if name < "__name__"),
        b"".join(pair for name, pair in encoded if "__name__" <= name < LABEL_CHANNEL),
        b"".join(pair for name, pair in encoded if name >= LABEL_CHANNEL),
        any(name == LABEL_CHANNEL for name, _ in labels),
    )
