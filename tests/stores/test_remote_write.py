from __future__ import annotations

import math
import struct
from collections.abc import Iterator

import cramjam
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from anomaly_times.conventions import channel_labels
from anomaly_times.panel import Labels
from anomaly_times.stores import remote_write, samples
from anomaly_times.stores.samples import Samples

NOW = 1_780_000_000_000


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """A protobuf message by its definition, field by field."""
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        if key & 7 == 0:
            value, at = varint(data, at)
            yield key >> 3, value
            continue
        length, at = varint(data, at) if key & 7 == 2 else (8, at)
        assert key & 7 in (1, 2)
        assert at + length <= len(data)
        yield key >> 3, data[at : at + length]
        at += length


def decode(body: bytes) -> list[tuple[list[tuple[str, str]], list[tuple[int, float]]]]:
    out = []
    for number, series in fields(bytes(cramjam.snappy.decompress_raw(body))):
        assert number == 1
        assert isinstance(series, bytes)
        labels, points = [], []
        for number, part in fields(series):
            assert isinstance(part, bytes)
            values = dict(fields(part))
            if number == 1:
                labels.append((values[1].decode(), values[2].decode()))
            else:
                time = values[2] - (1 << 64 if values[2] >= 1 << 63 else 0)
                points.append((time, struct.unpack("<d", values[1])[0]))
        out.append((labels, points))
    return out


def expected(block: Samples) -> list[tuple[list[tuple[str, str]], list[tuple[int, float]]]]:
    out = []
    for i, labels in enumerate(block.labels):
        for m, metric in enumerate(block.metrics):
            points = [
                (int(time), float(value))
                for time, value in zip(block.timestamps, block.values[i, m], strict=True)
                if math.isfinite(value)
            ]
            channel = block.channels[m] if block.channels else ""
            own = channel_labels(labels, channel) if channel else labels
            if points:
                out.append((sorted([*own, ("__name__", metric)]), points))
    return out


names = st.text("AZaz_09", min_size=1, max_size=8).map("l{}".format) | st.sampled_from(
    ["Zone", "_x", "__a", "a", "channel", "exported_channel"]
)
texts = st.text('aZ/"\\ü漢😀 \t', min_size=1, max_size=20) | st.integers(120, 300).map("x".__mul__)
label_sets = st.dictionaries(names, texts, max_size=4)


@st.composite
def blocks(draw: st.DrawFn) -> Samples:
    series, metrics, times = draw(st.integers(0, 4)), draw(st.integers(1, 3)), draw(st.integers(0, 5))
    stamps = st.lists(
        st.integers(-(2**63), 2**63 - 1) | st.integers(NOW, NOW + 10**9) | st.integers(-3, 300),
        min_size=times,
        max_size=times,
        unique=True,
    )
    return Samples(
        tuple(f"metric_{m}" for m in range(metrics)),
        [Labels.of(draw(label_sets)) for _ in range(series)],
        np.array(sorted(draw(stamps)), dtype=np.int64),
        draw(hnp.arrays(np.float64, (series, metrics, times), elements=st.floats(width=64))),
        draw(st.just(()) | st.tuples(*[st.sampled_from(["", "drift", "flat"])] * metrics)),
    )


@given(st.lists(blocks(), max_size=3))
@settings(deadline=None, max_examples=80)
def test_what_a_plain_decoder_reads_is_what_was_sent(sent: list[Samples]) -> None:
    read = [series for body in remote_write.encode(sent) for series in decode(body)]
    assert read == [series for block in sent for series in expected(block)]


def test_labels_are_sorted_with_the_name_among_them() -> None:
    block = Samples(("m",), [Labels.of({"Zone": "a", "job": "b"})], np.array([NOW]), np.ones((1, 1, 1)))
    [(labels, _)] = decode(next(remote_write.encode([block])))
    assert labels == [("Zone", "a"), ("__name__", "m"), ("job", "b")]


def test_nothing_finite_is_no_request() -> None:
    values = np.array([[[np.nan, np.inf]], [[-np.inf, np.nan]]])
    block = Samples(("m",), [Labels.of({"i": "0"}), Labels.of({"i": "1"})], np.array([NOW, NOW + 1]), values)
    assert list(remote_write.encode([block])) == []
    assert list(remote_write.encode([])) == []


def test_many_series_are_cut_into_requests_that_never_tear_a_series(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "MAX_BYTES", 2000)
    labels = [Labels.of({"i": str(i), "pad": "x" * (40 * (i % 7))}) for i in range(100)]
    values = np.random.default_rng(1).normal(size=(100, 3, 4))
    values[10:30] = np.nan
    block = Samples(("pred", "lower", "upper"), labels, NOW + 60_000 * np.arange(4), values)
    bodies = [decode(body) for body in remote_write.encode([block])]
    assert [series for body in bodies for series in body] == expected(block)
    assert len(bodies) > 10
    for body in bodies:
        held = [dict(names)["i"] for names, _ in body]
        assert all(held.count(i) == 3 for i in held)


def test_a_request_keeps_to_its_size_unless_one_series_is_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "MAX_BYTES", 3000)
    times = NOW + np.arange(500)
    block = Samples(("m",), [Labels.of({"i": str(i)}) for i in range(50)], times[:8], np.ones((50, 1, 8)))
    large = Samples(("m",), [Labels.of({"i": "large"})], times, np.ones((1, 1, 500)))
    sizes = [cramjam.snappy.decompress_raw_len(body) for body in remote_write.encode([block, large, block])]
    assert sorted(sizes)[-1] == cramjam.snappy.decompress_raw_len(next(remote_write.encode([large])))
    assert all(size <= 3000 for size in sorted(sizes)[:-1])


def test_small_missions_travel_as_one_request() -> None:
    many = [Samples(("m",), [Labels.of({"mission": str(i)})], np.array([NOW]), np.ones((1, 1, 1))) for i in range(500)]
    [body] = remote_write.encode(many)
    assert len(decode(body)) == 500


def test_samples_refuse_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="rise"):
        Samples(("m",), [Labels()], np.array([NOW, NOW]), np.ones((1, 1, 2)))
    with pytest.raises(ValueError, match="not"):
        Samples(("m",), [Labels()], np.array([NOW]), np.ones((1, 1, 2)))
    with pytest.raises(ValueError, match="2 channels for 1"):
        Samples(("m",), [Labels()], np.array([NOW]), np.ones((1, 1, 1)), ("a", "b"))
