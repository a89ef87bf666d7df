"""What Prometheus' query API answers, as labels and numbers.

A range query over thousands of series is tens of megabytes of `[1700000000,"1.5"]`, so `parse_matrix` never makes an
object of a sample: it cuts the body at the `"values"` of each series, turns all samples into one CSV text, and has
polars read that at once (7 million samples a second a core, ten times what `json` does). It takes only bodies that have
exactly the compact form that Prometheus and VictoriaMetrics write; any other goes through a plain JSON decoder, which
also finds the words for what is wrong.

Format: https://prometheus.io/docs/prometheus/latest/querying/api/#expression-query-result-formats
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from anomaly_times.errors import QueryError, StoreDataError
from anomaly_times.panel import Floats, Grid, Labels

__all__ = ["parse_matrix", "parse_newest", "parse_samples", "parse_strings", "parse_types"]

logger = logging.getLogger(__name__)

_Integers = npt.NDArray[np.int64]
_Placing = Callable[[_Integers, _Integers, Floats, Grid, str], Floats]

_VALUES = b'"values":[['
_FIRST_METRIC = b'{"metric":{'
_NEXT_METRIC = b'},{"metric":{'
_TO_CSV = bytes.maketrans(b"]", b"\n")
_KNOWN_LABELS = 1 << 19
_BLOCK_POINTS = 500_000
_FEW_POINTS = 500
"""Of so many polars would spend most of its time, and that of all cores, on getting ready (measured)."""


class _Row(msgspec.Struct):
    metric: dict[str, str]
    values: list[tuple[float, str]] = []
    value: tuple[float, str] | None = None
    histograms: msgspec.Raw = msgspec.Raw()
    histogram: msgspec.Raw = msgspec.Raw()


class _Data(msgspec.Struct):
    resultType: str  # noqa: N815
    result: msgspec.Raw


class _Envelope(msgspec.Struct):
    status: str
    data: msgspec.Raw = msgspec.Raw()
    error: str = ""
    isPartial: bool = False  # noqa: N815
    warnings: list[str] | None = None


class _Described(msgspec.Struct):
    type: str = ""


_envelope = msgspec.json.Decoder(_Envelope)
_data = msgspec.json.Decoder(_Data)
_rows = msgspec.json.Decoder(list[_Row])
_samples = msgspec.json.Decoder(list[list[tuple[float, str]]])
_strings = msgspec.json.Decoder(list[str])
_types = msgspec.json.Decoder(dict[str, list[_Described]])
_metric = msgspec.json.Decoder(dict[str, str])
_labels: dict[bytes, Labels] = {}
"""Label sets by their JSON: a pass reads the same series again each minute, and decoding them is most of its work.

100,000 series in detection are 500,000 of these: values, scores, forecasts and both bounds.
"""
_older: dict[bytes, Labels] = {}
"""What was known when `_labels` was full: so that one series too many never makes all others unknown."""
_pairs: dict[tuple[str, str], tuple[str, str]] = {}
"""Each pair once: it stands in thousands of label sets."""


def parse_matrix(body: bytes, grid: Grid, *, where: str) -> tuple[list[Labels], Floats]:
    """The series of a range query's answer and their values at the times of `grid`.

    Args:
        body: JSON with `"resultType":"matrix"`.
        grid: what was asked for; a missing sample, NaN and ±Inf become NaN.
        where: names the server in messages.

    Returns:
        One label set a row, in the order of the body, and float64[S, T].

    Raises:
        QueryError: the answer holds native histograms.
        StoreDataError: no such JSON, broken off, partial, an error, no matrix, or samples off the grid.
    """
    labels, (y,) = _parse(body, grid, [_place], where)
    return labels, y


def parse_newest(body: bytes, grid: Grid, *, where: str) -> tuple[list[Labels], Floats, Floats]:
    """The newest raw sample of each step: what a range selector over the whole of `grid` answers, on the grid.

    A sample belongs to the grid time that it lies at, or less than a step before. Arguments and errors are those of
    `parse_matrix`.

    Returns:
        One label set a row, in the order of the body; float64[S, T] of values; and how many milliseconds before the
        grid time each of them lies, float64[S, T], NaN where there is none.
    """
    labels, (y, lead) = _parse(body, grid, [_place_newest, _place_lead], where)
    return labels, y, lead


def _parse(body: bytes, grid: Grid, placings: Sequence[_Placing], where: str) -> tuple[list[Labels], list[Floats]]:
    """The series of an answer, and a matrix by each way of placing their samples."""
    cut = _cut(body)
    if cut is not None:
        frame, metrics, cells = cut
        labels = _decode_all(metrics)
        placed = None if labels is None else _numbers_of(cells, grid, placings, where)
        if labels is not None and placed is not None:
            _result(frame, "matrix", where)
            return labels, placed
    rows = _decode_rows(_result(body, "matrix", where), where)
    counts = np.array([len(row.values) for row in rows], dtype=np.int64)
    times, values = _columns([sample for row in rows for sample in row.values], where)
    placed = [place(counts, times, values, grid, where) for place in placings]
    return [Labels.of(row.metric) for row in rows], placed


def parse_samples(body: bytes, *, where: str) -> list[tuple[Labels, list[tuple[int, float]]]]:
    """The samples of an instant query's answer: for each series its labels and `(ms since the epoch, value)`.

    One sample a series for a vector, all in the window for a range selector; no series for a scalar or a string.

    Raises:
        StoreDataError: as for `parse_matrix`.
    """
    rows = _decode_rows(_result(body, "", where), where)
    out = []
    for row in rows:
        samples = row.values or ([row.value] if row.value else [])
        out.append((Labels.of(row.metric), [(round(at * 1000), _float(text, where)) for at, text in samples]))
    return out


def parse_strings(body: bytes, *, where: str) -> list[str]:
    """The strings of an answer about metadata, such as the values of a label.

    Raises:
        StoreDataError: as for `parse_matrix`.
    """
    try:
        return _strings.decode(_envelope_data(body, where))
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise _not_understood(body, where, exc) from exc


def parse_types(body: bytes, *, where: str) -> dict[str, str]:
    """The type of each metric (`counter`, `gauge`, …) in an answer about metadata; those that no target knows left out.

    Raises:
        StoreDataError: as for `parse_matrix`.
    """
    try:
        found = _types.decode(_envelope_data(body, where))
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise _not_understood(body, where, exc) from exc
    types = {metric: {each.type for each in described} - {"", "unknown"} for metric, described in found.items()}
    # Targets that disagree say nothing.
    return {metric: kinds.pop() for metric, kinds in types.items() if len(kinds) == 1}


def _cut(body: bytes) -> tuple[bytes, list[bytes], list[bytes]] | None:
    """The answer less its series, each series' metric (JSON), each series' samples `t,"v"],[t,"v"`; `None` if unsure.

    `"values":[[` cannot stand inside a JSON string, whose quotes are escaped, and samples hold no brace. Both are what
    makes cutting safe whatever the labels contain.
    """
    head, *parts = body.split(_VALUES)
    start = head.find(_FIRST_METRIC)
    if start < 0 or not parts:
        return None
    metrics = [head[start + len(_FIRST_METRIC) - 1 : -1]]
    if head[-1:] != b",":
        return None
    cells = []
    last = len(parts) - 1
    for i, part in enumerate(parts):
        end = part.find(b"}")
        if end < 2 or part[end - 2 : end] != b"]]" or part.find(b"{", 0, end) >= 0:
            return None
        cells.append(part[: end - 2])
        if i < last:
            if not part.startswith(_NEXT_METRIC, end) or part[-1:] != b",":
                return None
            metrics.append(part[end + len(_NEXT_METRIC) - 1 : -1])
    tail = parts[-1][end + 1 :]
    return (head[:start] + tail, metrics, cells) if tail[:1] == b"]" else None


def _numbers_of(cells: list[bytes], grid: Grid, placings: Sequence[_Placing], where: str) -> list[Floats] | None:
    """All samples as matrices; `None` if any does not look as it must."""
    whole_seconds = _place in placings and not (grid.start_ms % 1000 or grid.step_ms % 1000)
    matrices = [np.empty((len(cells), grid.n)) for _ in placings]
    # Blocks that fit the processor's cache are faster than one pass over all.
    rows = max(1, _BLOCK_POINTS // max(1, grid.n))
    for first in range(0, len(cells), rows):
        numbers = _numbers(cells[first : first + rows], whole_seconds=whole_seconds)
        if numbers is None:
            return None
        for matrix, place in zip(matrices, placings, strict=True):
            matrix[first : first + rows] = place(*numbers, grid, where)
    return matrices


def _numbers(cells: list[bytes], *, whole_seconds: bool) -> tuple[_Integers, _Integers, Floats] | None:
    """How many samples each series has; of all samples the times in ms, and the values.

    `None` if anything does not look as it must.
    """
    counts = np.array([cell.count(b"]") for cell in cells], dtype=np.int64) + 1
    if counts.sum() <= _FEW_POINTS:
        return _few_numbers(cells, counts)
    import polars as pl

    # Every sample but the first follows a comma; with one before the first too, all are rows of three columns.
    text = b"," + b"],".join(cells).translate(_TO_CSV, b'["')
    schema = {"empty": pl.Int8, "t": pl.Int64 if whole_seconds else pl.Float64, "v": pl.Float64}
    try:
        # Without the first column in the frame polars would take rows that are too long.
        frame = pl.read_csv(text, has_header=False, schema=schema, quote_char=None)
    except pl.exceptions.PolarsError:
        return None
    empty, times, values = frame.get_columns()
    if not len(frame) == counts.sum() == empty.null_count() or times.null_count() or values.null_count():
        return None
    seconds = times.to_numpy()
    ms = seconds * 1000 if whole_seconds else np.rint(seconds * 1000).astype(np.int64)
    return counts, ms, values.to_numpy()


def _few_numbers(cells: list[bytes], counts: _Integers) -> tuple[_Integers, _Integers, Floats] | None:
    """What `_numbers` answers, by a plain JSON decoder; `counts` is how many samples each series should have."""
    try:
        rows = _samples.decode(b"[[[" + b"]],[[".join(cells) + b"]]]")
        times, values = _columns([sample for row in rows for sample in row], "")
    except (msgspec.DecodeError, UnicodeDecodeError, StoreDataError):
        return None
    return (counts, times, values) if [len(row) for row in rows] == counts.tolist() else None


def _columns(samples: Sequence[tuple[float, str]], where: str) -> tuple[_Integers, Floats]:
    """The times of all samples in ms, and their values."""
    times = np.rint(np.array([at for at, _ in samples], dtype=np.float64) * 1000).astype(np.int64)
    return times, np.array([_float(text, where) for _, text in samples], dtype=np.float64)


def _place(counts: _Integers, times: _Integers, values: Floats, grid: Grid, where: str) -> Floats:
    """The samples as a matrix; where every series has all points, they are in place already."""
    if len(counts) and (counts == grid.n).all() and (times.reshape(-1, grid.n) == grid.epoch_ms()).all():
        y = values.reshape(-1, grid.n)
    else:
        columns, off = np.divmod(times - grid.start_ms, grid.step_ms)
        wrong = (off != 0) | (columns < 0) | (columns >= grid.n)
        if wrong.any():
            raise StoreDataError(
                f"{where} answers a sample at {times[wrong][0] / 1000:.3f} s, which was not asked for",
                hint="does a cache or proxy between us and the server move the times of range queries?",
            )
        y = np.full((len(counts), grid.n), np.nan)
        y[np.repeat(np.arange(len(counts)), counts), columns] = values
    return _without_infinities(y)


def _place_newest(counts: _Integers, times: _Integers, values: Floats, grid: Grid, where: str) -> Floats:
    """The last sample of each step as a matrix."""
    columns = -((grid.start_ms - times) // grid.step_ms)
    wrong = (columns < 0) | (columns >= grid.n)
    if wrong.any():
        raise StoreDataError(f"{where} answers a sample at {times[wrong][0] / 1000:.3f} s, which was not asked for")
    y = np.full((len(counts), grid.n), np.nan)
    # Samples rise in time, and of two for one place the last stays.
    y[np.repeat(np.arange(len(counts)), counts), columns] = values
    return _without_infinities(y)


def _place_lead(counts: _Integers, times: _Integers, values: Floats, grid: Grid, where: str) -> Floats:
    """How many milliseconds before its grid time the last sample of each step lies, as a matrix."""
    lead = (grid.start_ms - times) % grid.step_ms
    return _place_newest(counts, times, lead.astype(np.float64), grid, where)


def _without_infinities(y: Floats) -> Floats:
    infinite = np.isinf(y)
    return np.where(infinite, np.nan, y) if infinite.any() else y


def _decode_all(metrics: Sequence[bytes]) -> list[Labels] | None:
    """Label sets from their JSON; `None` if one is no object of strings."""
    _make_room()
    known, older, out = _labels, _older, []
    try:
        for raw in metrics:
            labels = known.get(raw)
            if labels is None:
                labels = older.get(raw)
                known[raw] = labels = _labels_of(raw) if labels is None else labels
            out.append(labels)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return out


def _labels_of(raw: bytes) -> Labels:
    """As `Labels.of`, of pairs that are shared."""
    return Labels(sorted(_pairs.setdefault(pair, pair) for pair in _metric.decode(raw).items() if pair[1]))


def _make_room() -> None:
    """Forget the label sets that were not met for longest, where there are too many."""
    global _labels, _older
    if len(_labels) > _KNOWN_LABELS:
        _older, _labels = _labels, {}
        _pairs.clear()


def _result(body: bytes, kind: str, where: str) -> msgspec.Raw:
    """`data.result` of a successful answer whose `resultType` is `kind` (any, if that is empty)."""
    data = _envelope_data(body, where)
    try:
        found = _data.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise _not_understood(body, where, exc) from exc
    if kind and found.resultType != kind:
        raise StoreDataError(f"{where} answers a {found.resultType[:40]} where a {kind} was expected")
    if found.resultType in ("scalar", "string"):
        return msgspec.Raw(b"[]")
    return found.result


def _envelope_data(body: bytes, where: str) -> msgspec.Raw:
    try:
        answer = _envelope.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise _not_understood(body, where, exc) from exc
    if answer.status != "success" or not bytes(answer.data):
        raise StoreDataError(f"{where} answers {answer.status[:40]!r}: {answer.error[:500] or 'without a word why'}")
    # Prometheus' remarks on a query's style are no sign of missing data; all other warnings are.
    remarks = answer.warnings or []
    missing = [text for text in remarks if not text.startswith("PromQL ")]
    for text in remarks:
        logger.warning("%s: %s", where, text)
    if answer.isPartial or missing:
        why = missing[0][:500] if missing else "some storage nodes did not answer"
        raise StoreDataError(
            f"{where} answers with a part of the data only: {why}",
            hint="half the data would look like an anomaly; try again when all of the servers behind it are up",
        )
    return answer.data


def _decode_rows(result: msgspec.Raw, where: str) -> list[_Row]:
    try:
        rows = _rows.decode(result)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise _not_understood(bytes(result), where, exc) from exc
    for row in rows:
        if bytes(row.histograms) or bytes(row.histogram):
            raise QueryError(
                f"{where} answers native histograms, e.g. for {Labels.of(row.metric)}",
                hint="make numbers of them: histogram_quantile(0.99, …), histogram_count(…), histogram_avg(…)",
            )
    return rows


def _not_understood(body: bytes, where: str, exc: Exception) -> StoreDataError:
    begin = " ".join(body[:60].decode(errors="replace").split())
    if body[:1] not in (b"{", b"["):
        return StoreDataError(
            f"{where} does not answer JSON; it begins with {begin!r}",
            hint="is that the base URL of a Prometheus-compatible server? /api/v1/query_range is added to it",
        )
    return StoreDataError(
        f"{where} answers JSON that cannot be understood: {exc}",
        hint="the answer may have broken off on its way; is there a proxy in between?",
    )


def _float(text: str, where: str) -> float:
    try:
        if "_" not in text:  # which Python would skip
            return float(text)
    except ValueError:
        pass
    raise StoreDataError(f"{where} answers {text[:40]!r} where a number was expected")
