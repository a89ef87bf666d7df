from __future__ import annotations

import gzip
import json
import math

import cramjam
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly_times.panel import Labels
from anomaly_times.stores import samples, vm_import
from anomaly_times.stores.samples import Samples
from tests.stores.test_remote_write import NOW, blocks, expected


@given(st.lists(blocks(), max_size=3))
@settings(deadline=None, max_examples=50)
def test_what_a_json_parser_reads_is_what_was_sent(sent: list[Samples]) -> None:
    read = []
    for body in vm_import.encode(sent):
        for line in gzip.decompress(body).decode().splitlines():
            series = json.loads(line)
            points = list(zip(series["timestamps"], series["values"], strict=True))
            read.append((sorted(series["metric"].items()), points))
    assert read == [series for block in sent for series in expected(block)]
    assert all(math.isfinite(value) for _, points in read for _, value in points)


def test_many_series_are_cut_into_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "MAX_BYTES", 2000)
    block = Samples(("a", "b"), [Labels.of({"i": str(i)}) for i in range(100)], np.array([NOW]), np.ones((100, 2, 1)))
    bodies = [gzip.decompress(body).decode().splitlines() for body in vm_import.encode([block])]
    assert len(bodies) > 3
    assert sum(len(lines) for lines in bodies) == 200
    assert all(len(lines) % 2 == 0 for lines in bodies)


def test_the_body_is_gzip() -> None:
    block = Samples(("m",), [Labels.of({"i": 'a"b'})], np.array([NOW]), np.array([[[1.25]]]))
    [body] = vm_import.encode([block])
    assert vm_import.HEADERS["Content-Encoding"] == "gzip"
    assert bytes(cramjam.gzip.decompress(body)) == (
        b'{"metric":{"__name__":"m","i":"a\\"b"},"values":[1.25],"timestamps":[1780000000000]}\n'
    )
