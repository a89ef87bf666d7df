from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from anomaly_times.durations import EPOCH
from anomaly_times.errors import QueryError, StoreDataError
from anomaly_times.panel import Floats, Grid, Labels
from anomaly_times.stores import matrix
from anomaly_times.stores.matrix import parse_matrix, parse_samples, parse_strings, parse_types

MINUTE = timedelta(minutes=1)
GRID = Grid(EPOCH + 1_000_000 * MINUTE, MINUTE, 4)
T = GRID.start_ms // 1000


def reference(body: bytes, grid: Grid) -> tuple[list[Labels], Floats]:
    """What a matrix answer says, sample by sample."""
    rows = json.loads(body)["data"]["result"]
    y = np.full((len(rows), grid.n), np.nan)
    for i, row in enumerate(rows):
        for at, text in row["values"]:
            value = float(text)
            y[i, round((at * 1000 - grid.start_ms) / grid.step_ms)] = value if np.isfinite(value) else np.nan
    return [Labels.of(row["metric"]) for row in rows], y


def answer(rows: list[dict[str, Any]], **top: object) -> bytes:
    """A body as Go's encoders write it: compact, letters as they are."""
    body = {"status": "success", **top, "data": {"resultType": "matrix", "result": rows}}
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()


def series(labels: dict[str, str], values: list[str], first: int = 0) -> dict[str, Any]:
    return {"metric": labels, "values": [[T + 60 * (first + i), value] for i, value in enumerate(values)]}


@pytest.fixture(scope="module", autouse=True, params=[0, matrix._FEW_POINTS], ids=["many", "few"])
def size(request: pytest.FixtureRequest) -> Iterator[None]:
    """Small bodies stand for large ones, and for themselves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matrix, "_FEW_POINTS", request.param)
        yield


@pytest.fixture
def fast_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain decoder is no help: what passes went the fast way."""
    monkeypatch.setattr(matrix, "_decode_rows", lambda *_: pytest.fail("the plain decoder was needed"))


NASTY = [
    '"values":[[1,"2"]]',
    ']]},{"metric":{',
    '{"metric":{"a":"b"},"values":[[',
    "back\\slash",
    "\n\t\x00\x7f",
    "ü€😀",
    '"',
    "}",
    "]]}",
]
texts = st.one_of(st.sampled_from(NASTY), st.text(st.characters(exclude_categories=["Cs"]), max_size=8))
names = st.one_of(st.sampled_from(["__name__", "job", "values", "metric", "value", "result"]), texts.filter(bool))
numbers = st.one_of(
    st.sampled_from(
        ["NaN", "+Inf", "-Inf", "1e-320", "-0", "1.7976931348623157e+308", "123456789012345678901", "0", "5"]
    ),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.integers(-(2**70), 2**70).map(str),
)
rows = st.lists(
    st.builds(
        lambda labels, cells: {
            "metric": labels,
            "values": [[T + 60 * i, text] for i, text in enumerate(cells) if text],
        },
        st.dictionaries(names, texts, max_size=4),
        st.lists(st.one_of(numbers, st.none()), min_size=4, max_size=4),
    ),
    max_size=5,
)


@settings(max_examples=300, deadline=None)
@given(rows)
@example([series({text: text}, ["1"] * 4) for text in NASTY])
@example([{"metric": {"values": '[["'}, "values": [[T, "1"]]}])
def test_every_body_reads_like_the_slow_reference(found: list[dict[str, Any]]) -> None:
    body = answer(found)
    labels, y = parse_matrix(body, GRID, where="server")
    expected_labels, expected = reference(body, GRID)
    assert labels == expected_labels
    np.testing.assert_array_equal(y, expected)


@settings(max_examples=100, deadline=None)
@given(rows, st.integers(0, 3))
def test_spaces_and_another_order_of_keys_change_nothing(found: list[dict[str, Any]], indent: int) -> None:
    turned = [dict(reversed(row.items())) for row in found]
    body = json.dumps(json.loads(answer(turned)), indent=indent).encode()
    labels, y = parse_matrix(body, GRID, where="server")
    assert labels == reference(body, GRID)[0]
    np.testing.assert_array_equal(y, reference(body, GRID)[1])


@pytest.mark.usefixtures("fast_only")
@pytest.mark.parametrize(
    "tail",
    [
        b"}}",  # Prometheus, VictoriaMetrics
        b'},"stats":{"seriesFetched":"2","executionTimeMsec":3}}',  # newer VictoriaMetrics
        b'},"warnings":[]}',
    ],
)
def test_the_forms_that_servers_write_take_the_fast_way(tail: bytes) -> None:
    rows = [series({"a": "]]}"}, ["1", "2", "3", "4"]), series({}, ["NaN", "+Inf", "7"], first=1)]
    for head in (b'{"status":"success","data":', b'{"status":"success","isPartial":false,"data":'):
        body = head + b'{"resultType":"matrix","result":' + json.dumps(rows, separators=(",", ":")).encode() + tail
        labels, y = parse_matrix(body, GRID, where="server")
        assert labels == [Labels.of({"a": "]]}"}), Labels()]
        np.testing.assert_array_equal(y, [[1, 2, 3, 4], [np.nan, np.nan, np.nan, 7]])


@pytest.mark.parametrize("more", [b'"]],[[1,"2', b'"],[1,"2"]],[[1,"2', b'","2', b'"],[1,2],[1,"2'])
def test_samples_that_are_cut_elsewhere_go_to_no_other_series(more: bytes) -> None:
    """One more row or column would move all that follow."""
    body = answer([series({"a": "1"}, ["1", "2"]), series({"a": "2"}, ["3"])])
    with pytest.raises(StoreDataError):
        parse_matrix(body.replace(b'"2"', b'"2' + more + b'"', 1), GRID, where="s")


@pytest.mark.usefixtures("fast_only")
def test_steps_below_a_second_are_placed() -> None:
    grid = Grid(EPOCH + timedelta(seconds=1000), timedelta(milliseconds=250), 4)
    body = answer([{"metric": {}, "values": [[1000, "0"], [1000.25, "1"], [1000.75, "3"]]}])
    np.testing.assert_array_equal(parse_matrix(body, grid, where="s")[1], [[0, 1, np.nan, 3]])


def test_series_that_do_not_share_a_time_stay_apart() -> None:
    # Without a separator the times of both would rise as those of one series do.
    body = answer([series({"a": "1"}, ["1", "2"]), series({"a": "2"}, ["3", "4"], first=2)])
    np.testing.assert_array_equal(
        parse_matrix(body, GRID, where="s")[1], [[1, 2, np.nan, np.nan], [np.nan, np.nan, 3, 4]]
    )


def test_an_empty_result_is_no_series() -> None:
    labels, y = parse_matrix(answer([]), GRID, where="s")
    assert labels == []
    assert y.shape == (0, 4)


def test_empty_label_values_are_dropped() -> None:
    assert parse_matrix(answer([series({"a": "", "b": "1"}, ["1"])]), GRID, where="s")[0] == [Labels.of({"b": "1"})]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_body_that_breaks_off_is_an_error_wherever_it_ends(data: st.DataObject) -> None:
    body = answer([series({"a": '"values":[['}, ["1.5", "NaN", "2"]), series({"a": "b"}, ["1", "2", "3", "4"])])
    end = data.draw(st.integers(0, len(body) - 1))
    with pytest.raises(StoreDataError):
        parse_matrix(body[:end], GRID, where="server")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_bytes_never_pass_as_other_numbers(data: st.DataObject) -> None:
    body = bytearray(answer([series({"a": "b"}, ["1.5", "25", "2"]), series({"a": "c"}, ["1", "2", "3", "4"])]))
    at = data.draw(st.integers(0, len(body) - 1))
    body[at] = data.draw(st.sampled_from(b'"[]{},:x 1'))
    try:
        expected = reference(bytes(body), GRID)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return
    try:
        labels, y = parse_matrix(bytes(body), GRID, where="server")
    except StoreDataError:
        return
    assert labels == expected[0]
    np.testing.assert_array_equal(y, expected[1])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"<!DOCTYPE html><html>", "does not answer JSON; it begins with '<!DOCTYPE html>"),
        (b"", "does not answer JSON"),
        (b'{"status":"error","errorType":"bad_data","error":"no such thing"}', "'error': no such thing"),
        (b'{"status":"success","data":{"resultType":"vector","result":[]}}', "answers a vector where a matrix"),
        (b'{"hello":1}', "cannot be understood"),
        (
            b'{"status":"success","data":{"resultType":"matrix","result":[{"metric":{"a":1},"values":[[1,"2"]]}]}}',
            "unders",
        ),
        (b'{"status":"success","data":{"resultType":"matrix","result":[{"metric":{"a":"\xff"}}]}}', "understood"),
    ],
)
def test_what_is_no_matrix_is_named(body: bytes, words: str) -> None:
    with pytest.raises(StoreDataError, match="server") as caught:
        parse_matrix(body, GRID, where="server")
    assert words in str(caught.value)


@pytest.mark.parametrize("value", ["", "1_000", "0x10", "abc", "1,2"])
def test_what_is_no_number_is_an_error(value: str) -> None:
    with pytest.raises(StoreDataError, match="number"):
        parse_matrix(answer([series({}, ["1", value])]), GRID, where="server")


@pytest.mark.parametrize("at", [T + 30, T - 60, T + 240])
def test_a_sample_that_was_not_asked_for_is_an_error(at: int) -> None:
    with pytest.raises(StoreDataError, match="was not asked for"):
        parse_matrix(answer([{"metric": {}, "values": [[at, "1"]]}]), GRID, where="server")


def test_a_full_row_off_the_grid_is_not_taken_for_a_dense_one() -> None:
    shifted = [{"metric": {}, "values": [[T + 60 * i + 1, "1"] for i in range(4)]}]
    with pytest.raises(StoreDataError, match="was not asked for"):
        parse_matrix(answer(shifted), GRID, where="server")


@pytest.mark.parametrize(
    "top", [{"isPartial": True}, {"warnings": ["store 10.0.0.1 unavailable"]}, {"warnings": ["PromQL info: x", "gone"]}]
)
def test_a_part_of_the_data_does_not_pass_for_all(top: dict[str, object]) -> None:
    with pytest.raises(StoreDataError, match="a part of the data") as caught:
        parse_matrix(answer([series({}, ["1"] * 4)], **top), GRID, where="server")
    assert caught.value.hint


def test_remarks_about_the_query_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    remark = 'PromQL warning: bucket label "le" is missing'
    parse_matrix(answer([series({}, ["1"] * 4)], warnings=[remark]), GRID, where="server")
    assert remark in caplog.text


def test_native_histograms_say_what_to_do() -> None:
    row = {"metric": {"a": "b"}, "histograms": [[T, {"count": "3", "sum": "1", "buckets": [[0, "1", "2", "3"]]}]]}
    for rows in ([row], [series({}, ["1"] * 4), row], [{**series({}, ["1"] * 4), **row}, series({}, ["1"] * 4)]):
        with pytest.raises(QueryError, match="histograms") as caught:
            parse_matrix(answer(rows), GRID, where="server")
        assert "histogram_quantile" in caught.value.hint


def test_samples_of_an_instant_query_keep_their_milliseconds() -> None:
    vector = {"resultType": "vector", "result": [{"metric": {"a": "b"}, "value": [1000.123, "1.5"]}]}
    window = {"resultType": "matrix", "result": [{"metric": {}, "values": [[1000.001, "1"], [1000.002, "NaN"]]}]}
    scalar = {"resultType": "scalar", "result": [1000, "1"]}

    def parse(data: object) -> list[tuple[Labels, list[tuple[int, float]]]]:
        return parse_samples(json.dumps({"status": "success", "data": data}).encode(), where="s")

    assert parse(vector) == [(Labels.of({"a": "b"}), [(1000123, 1.5)])]
    [(labels, samples)] = parse(window)
    assert (labels, samples[0], samples[1][0]) == (Labels(), (1000001, 1.0), 1000002)
    assert np.isnan(samples[1][1])
    assert parse(scalar) == []


def test_strings_of_metadata() -> None:
    assert parse_strings(b'{"status":"success","data":["up","x"]}', where="s") == ["up", "x"]
    with pytest.raises(StoreDataError):
        parse_strings(b'{"status":"success","data":{}}', where="s")


def test_types_of_metrics() -> None:
    body = {
        "up": [{"type": "gauge", "help": "x", "unit": ""}, {"type": "gauge", "help": "y"}],
        "x": [{"type": "counter"}, {"type": "gauge"}],
        "y": [{"type": "unknown"}],
    }
    raw = json.dumps({"status": "success", "data": body}).encode()
    # Targets that disagree say nothing.
    assert parse_types(raw, where="s") == {"up": "gauge"}
    with pytest.raises(StoreDataError):
        parse_types(b'{"status":"success","data":[]}', where="s")


def test_known_labels_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix, "_KNOWN_LABELS", 10)
    for i in range(50):
        parse_matrix(answer([series({"n": str(i)}, ["1"] * 4)]), GRID, where="s")
        assert len(matrix._labels) <= 12
        assert i < 12 or len(matrix._older) <= 12
        assert i < 12 or len(matrix._pairs) <= 12


def test_label_sets_that_are_read_again_stay_the_same_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others that come and go beside them make none of them unknown, though all of them do not fit."""
    monkeypatch.setattr(matrix, "_KNOWN_LABELS", 10)
    again = answer([series({"kept": str(i)}, ["1"] * 4) for i in range(5)])
    first, _ = parse_matrix(again, GRID, where="s")
    for i in range(50):
        parse_matrix(answer([series({"n": str(i)}, ["1"] * 4)]), GRID, where="s")
        labels, _ = parse_matrix(again, GRID, where="s")
        assert all(now is before for now, before in zip(labels, first, strict=True))
