"""How forecasts and scores become samples on a server: labels, times, what is left out, and whether they arrived.

A forecast for grid time *t*, *k* steps after its cutoff, is written at *t* − *k* ms (`conventions.lead_ms`), and a
(mission, cutoff) that is complete is never written again: a server that keeps every sample would show either value.
Its limits are sent before it, and what is kept beside a score is sent with it, never later.
"""

from __future__ import annotations

import re
import secrets
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import numpy as np
import numpy.typing as npt

from anomaly_times.conventions import (
    FORECAST_METRICS,
    LABEL_CHANNEL,
    LABEL_MISSION,
    channel_labels,
    lead_ms,
)
from anomaly_times.durations import EPOCH, format_duration, milliseconds
from anomaly_times.errors import MissionError, StoreError, UsageError
from anomaly_times.mission import Mission
from anomaly_times.panel import Floats, Forecast, Grid, Labels, Scores
from anomaly_times.profiling import stage, staged
from anomaly_times.settings import WriteMode
from anomaly_times.stores import Gauge, Written, over_time, remote_write, vm_import
from anomaly_times.stores.http import RefusedError
from anomaly_times.stores.samples import Samples
from anomaly_times.stores.state import ForecastFiles

if TYPE_CHECKING:
    from anomaly_times.stores.prometheus import PrometheusStore

__all__ = [
    "FARTHEST_AHEAD",
    "MAX_LABELS",
    "Sent",
    "limits_at",
    "send",
    "uncached",
    "write_forecasts",
    "write_gauges",
    "write_scores",
]

FARTHEST_AHEAD = timedelta(hours=47)
"""VictoriaMetrics drops what lies more than two days ahead, with a 204; an hour is for clocks and delays."""
MAX_LABELS = 30
"""`-maxLabelsPerTimeseries` of VictoriaMetrics, `__name__` included; it cuts labels beyond off, with a 204."""
MAX_NAME, MAX_VALUE = 256, 4096
"""Bytes of a label's name and value: VictoriaMetrics cuts or drops what is longer, by version."""

Sent = tuple[Mission, tuple[Labels, ...], Grid, Floats]
"""A mission's label sets, less what a relay adds, and what was stored: float64[6, S, T] by `over_time.READ_BACK`."""

_RECENT = timedelta(hours=12)
_COUNTER_DELAY = 1.5
_VISIBLE_AFTER = 5.0
_GAUGES_WITHIN = 5.0
_OUT_OF_ORDER = re.compile(r"out.of.order|duplicate sample", re.IGNORECASE)


def write_forecasts(store: PrometheusStore, items: Sequence[tuple[Mission, Forecast]]) -> Written:
    """Store forecasts: ahead on the server, or as files in `store.state` where detection writes them.

    All is checked before anything is sent. Points without a finite forecast and bounds are left out.

    Raises:
        MissionError: two series would be written as one, a limit of the server would be passed, or the mission wants
            `ahead` of a server that may not hold the future.
        StoreError: the server is away, refuses, or dropped what it accepted; a rerun writes what is missing.
        ValueError: a forecast without a cutoff.
    """
    ahead, later = [], []
    for mission, forecast in items:
        labels = _checked_labels(store, mission, forecast.labels, channels=forecast.limits is not None)
        if store.writes_ahead(mission):
            ahead.append((mission, _forecast_samples(store, mission, labels, forecast), forecast))
        else:
            later.append((mission, forecast))

    written = Written()
    if later:
        files = ForecastFiles(store.state)
        for mission, forecast in later:
            written += files.write(mission, forecast)
        # By the time of the forecasts, so that a pass over the past keeps what it needs, and never past the present.
        files.prune(min([datetime.now(UTC), *(forecast.cutoff for _, forecast in later if forecast.cutoff)]))
    blocks = []
    for mission, samples, forecast in ahead:
        missing, skipped = _without_stored(store, mission, samples)
        written += Written(skipped=skipped)
        # Before the forecast, so that where one is its limits are.
        blocks += [*_limit_samples(store, mission, missing.labels, forecast), missing]
    return written + send(store, blocks)


def limits_at(cutoff_ms: int, step_ms: int) -> int:
    """When the limits of a cutoff are written, in ms since the epoch: with the first point of its forecast."""
    return cutoff_ms + step_ms - 1


def write_scores(store: PrometheusStore, items: Sequence[tuple[Mission, Scores]]) -> tuple[Written, list[Sent]]:
    """Store scores at the times of their grids, with what is kept beside them; NaN is left out.

    Where forecasts are not written ahead, the forecast and its bounds go beside each score, and only points past the
    newest stored score of their series: a plain Prometheus refuses a whole request for one older sample.

    Oldest first, all series of a mission together: where a write breaks off in the middle, the newest score of every
    series says truly how far it came. A score goes into one request with all that belongs to it, after it.

    Returns:
        What was written in all, and mission by mission.

    Raises:
        MissionError: two series would be written as one, or a limit of the server would be passed.
        StoreError: the server is away, refuses, or dropped what it accepted.
    """
    checked = [
        (
            mission,
            replace(
                scores, labels=_checked_labels(store, mission, scores.labels, channels=scores.evidence is not None)
            ),
        )
        for mission, scores in items
    ]
    with_forecast = [(mission, scores) for mission, scores in checked if not store.writes_ahead(mission)]
    newest = _newest_scores(store, with_forecast)
    ignored = store.source.ignore_labels
    blocks: list[Samples] = []
    sent: list[Sent] = []
    skipped = 0
    for mission, scores in checked:
        keys = tuple(row.without(ignored) for row in scores.labels) if ignored else tuple(scores.labels)
        kinds, numbers, times = over_time.SCORED, over_time.score_numbers(scores), scores.grid.epoch_ms()
        if not store.writes_ahead(mission):
            kinds = (*((metric, "") for metric in FORECAST_METRICS), *kinds)
            forecast = over_time.without_score(np.stack([scores.yhat, scores.lower, scores.upper]), scores.score)
            numbers = np.concatenate([forecast, numbers])
            stored = np.array([newest.get((mission.name, row), -1) for row in keys], dtype=np.int64)
            fresh = np.where(times > stored[:, None], numbers, np.nan)
            skipped += int(np.isfinite(numbers).any(axis=2).sum() - np.isfinite(fresh).any(axis=2).sum())
            numbers = fresh
        blocks += _samples(kinds, scores.labels, times, numbers).by_time()
        sent.append((mission, keys, scores.grid, numbers[-len(over_time.READ_BACK) :]))
    return send(store, blocks) + Written(skipped=skipped), sent


def send(store: PrometheusStore, blocks: Sequence[Samples]) -> Written:
    """Send samples by the source's protocol, and find out whether the server kept them where it tells.

    Raises:
        UsageError: the source has no URL to write to.
        StoreError: the server is away, refuses, or counts rows that it dropped and does not have ours.
    """
    finite = [np.isfinite(block.values) for block in blocks]
    written = Written(
        samples=sum(int(mask.sum()) for mask in finite), series=sum(int(mask.any(axis=2).sum()) for mask in finite)
    )
    if not written.samples:
        return written
    source = store.source
    if not source.write_url:
        raise UsageError(f"the source {store.name} can only be read", hint="set `write` of the source")
    encoder = vm_import if source.protocol == "vm_import" else remote_write
    dropped = _dropped_rows(store)
    post = staged("write")(partial(store.client.request, "POST", source.write_url, headers=encoder.HEADERS))
    try:
        # One after the other, for their order counts; the next is encoded while the server takes one.
        with ThreadPoolExecutor(1, thread_name_prefix="write") as pool:
            sent: Future[bytes] | None = None
            for body in _encoded(encoder.encode(blocks), written):
                if sent is not None:
                    sent.result()
                sent = pool.submit(post, content=body)
            if sent is not None:
                sent.result()
    except RefusedError as exc:
        raise _explained(exc) from exc
    if dropped is not None:
        _check_kept(store, blocks, dropped)
    return written


def _encoded(bodies: Iterator[bytes], written: Written) -> Iterator[bytes]:
    """Each body, made as the stage that it is."""
    points = written.samples
    while True:
        with stage("encode") as work:
            body = next(bodies, None)
            work.points, points = points, 0
            work.bytes = len(body) if body is not None else 0
        if body is None:
            return
        yield body


def write_gauges(store: PrometheusStore, gauges: Sequence[Gauge], *, at: datetime) -> None:
    """Store one sample of each gauge at that time, in one attempt of a few seconds; nothing where nothing is written.

    Passes end in another order than they begin, and Prometheus refuses a whole request for one sample that is older
    than the newest of its series. Then each metric goes alone, and what is refused again is out of date.

    Raises:
        StoreError: the server is away or refuses.
    """
    if not store.source.write_url or not gauges:
        return
    times = np.array([milliseconds(at - EPOCH)], dtype=np.int64)
    by_metric: dict[str, list[Gauge]] = defaultdict(list)
    for gauge in gauges:
        by_metric[gauge.metric].append(gauge)
    blocks = [
        Samples((metric,), [each.labels for each in group], times, np.array([[[each.value]] for each in group]))
        for metric, group in by_metric.items()
    ]
    if not _send_once(store, blocks):
        for block in blocks:
            _send_once(store, [block])


def _send_once(store: PrometheusStore, blocks: Sequence[Samples]) -> bool:
    """Whether the server took these samples; it did not where one is older than the newest of its series."""
    encoder = vm_import if store.source.protocol == "vm_import" else remote_write
    for body in encoder.encode(blocks):
        try:
            store.client.request(
                *("POST", store.source.write_url),
                content=body,
                headers=encoder.HEADERS,
                retry=False,
                deadline=_GAUGES_WITHIN,
            )
        except RefusedError as exc:
            if _OUT_OF_ORDER.search(exc.text):
                return False
            raise _explained(exc) from exc
    return True


def _checked_labels(
    store: PrometheusStore, mission: Mission, source: Sequence[Labels], *, channels: bool
) -> tuple[Labels, ...]:
    """The labels to write under; `channels` says whether one more is needed for some of what is written.

    Raises:
        MissionError: two would be equal, or VictoriaMetrics would cut one short without a word.
    """
    written = mission.written_labels(source)
    _check_unlike(mission, source, written)
    shapes = [_shape(row) for row in written]
    if channels and any(has_channel for _, _, has_channel in shapes):
        # A label that makes room for ours may be another series' own.
        _check_unlike(mission, source, [channel_labels(row, LABEL_CHANNEL) for row in written])
    if store.is_victoria_metrics:
        for row, (n_labels, fits, _) in zip(written, shapes, strict=True):
            n_labels += 1 + channels
            if n_labels > MAX_LABELS or not fits:
                raise MissionError(
                    f"{row} is written with {n_labels} labels or a very long one; VictoriaMetrics keeps {MAX_LABELS} a "
                    f"series, values up to {MAX_VALUE:,} bytes and names up to {MAX_NAME}, and cuts the rest off "
                    "silently",
                    hint=f"aggregate in the query of mission {mission.name}, e.g. `sum by (service) (…)`",
                )
    return written


def _check_unlike(mission: Mission, source: Sequence[Labels], written: Sequence[Labels]) -> None:
    """Raise a `MissionError` where two of `source` would be written under equal labels."""
    if len(set(written)) < len(written):
        first: dict[Labels, Labels] = {}
        for row, was in zip(written, source, strict=True):
            if row in first:
                raise MissionError(
                    f"the results of {first[row]} and {was} would be one series, {row}",
                    hint=f"rename the labels of mission {mission.name}, or tell the series apart in its query",
                )
            first[row] = was


# The same series are written minute after minute.
@lru_cache(maxsize=200_000)
def _shape(labels: Labels) -> tuple[int, bool, bool]:
    """How many labels there are, whether names and values are kept whole, and whether one is called `channel`."""
    whole = all(len(name.encode()) <= MAX_NAME and len(value.encode()) <= MAX_VALUE for name, value in labels)
    return len(labels), whole, any(name == LABEL_CHANNEL for name, _ in labels)


def _samples(
    kinds: Sequence[over_time.Kind], labels: Sequence[Labels], times: npt.NDArray[np.int64], numbers: Floats
) -> Samples:
    """Numbers by kind (float64[K, S, T]) as samples; what no series has is left out."""
    there = np.flatnonzero(np.isfinite(numbers).any(axis=(1, 2))).tolist()
    values = np.ascontiguousarray(np.moveaxis(numbers[there], 0, 1))
    metrics, channels = tuple(kinds[k][0] for k in there), tuple(kinds[k][1] for k in there)
    return Samples(metrics, labels, times, values, channels)


def _limit_samples(
    store: PrometheusStore, mission: Mission, labels: Sequence[Labels], forecast: Forecast
) -> list[Samples]:
    """The limits of those series of `forecast` that are written under `labels`, less what the store has.

    A series of which any is stored gets none: others would not fit it.
    """
    if forecast.limits is None or forecast.cutoff is None or not labels:
        return []
    row = {written: i for i, written in enumerate(mission.written_labels(forecast.labels))}
    numbers = over_time.limit_numbers(forecast.limits)[:, [row[each] for each in labels], None]
    at = limits_at(milliseconds(forecast.cutoff - EPOCH), forecast.grid.step_ms)
    samples = _samples(over_time.LIMITS, labels, np.array([at], dtype=np.int64), numbers)
    stored = _find_stored(store, mission, samples, at, at)
    return [samples.where(~np.any(stored, axis=(1, 2)))]


def _forecast_samples(
    store: PrometheusStore, mission: Mission, labels: Sequence[Labels], forecast: Forecast
) -> Samples:
    """`forecast` at its times less a millisecond for each step of lead; a series without any point is left out."""
    if not store.is_victoria_metrics and store.source.write_mode is not WriteMode.AHEAD:
        raise MissionError(
            f"mission {mission.name} wants to write ahead, and {store.name} is no VictoriaMetrics: "
            "samples from the future make Prometheus refuse the present of all metrics",
            hint="set `write: at_detection` of the mission, or `write_mode: ahead` of a source that holds the future",
        )
    if forecast.cutoff is None:
        raise ValueError("a forecast without a cutoff cannot be written")
    if forecast.grid.end - forecast.cutoff > FARTHEST_AHEAD:
        reach = format_duration(forecast.grid.end - forecast.cutoff)
        raise MissionError(
            f"mission {mission.name} forecasts {reach} ahead; VictoriaMetrics drops what lies more than two days ahead",
            hint=f"set `horizon` to {format_duration(FARTHEST_AHEAD)} or less, or `write: at_detection` of the mission "
            "(`write_mode` of the source)",
        )
    step, first = forecast.grid.step, (forecast.grid.start - forecast.cutoff) // forecast.grid.step
    leads = np.array([lead_ms(first + i, step) for i in range(forecast.grid.n)], dtype=np.int64)
    values = np.stack([forecast.yhat, forecast.lower, forecast.upper], axis=1)
    values[~np.broadcast_to(np.isfinite(values).all(axis=1, keepdims=True), values.shape)] = np.nan
    samples = Samples(FORECAST_METRICS, labels, forecast.grid.epoch_ms() - leads, values)
    return samples.where(np.any(np.isfinite(values[:, 0]), axis=1))


def _without_stored(store: PrometheusStore, mission: Mission, samples: Samples) -> tuple[Samples, int]:
    """`samples` less the metrics of series that the store has, and how many those are.

    Most times nothing or all is there, which the first and the last sample of each series tell. Else every sample is
    looked for: a write broke off, or this forecast reaches further than the one that is stored. Each cutoff has
    timestamps of its own, so another forecast is never taken for this one.
    """
    if not samples.labels:
        return samples, 0
    finite = np.isfinite(samples.values[:, 0])
    first, last = finite.argmax(axis=1), finite.shape[1] - 1 - finite[:, ::-1].argmax(axis=1)
    times = samples.timestamps
    heads, tails = (
        [_find_stored(store, mission, samples, int(times[column]), int(times[column])) for column in np.unique(columns)]
        for columns in (first, last)
    )
    if not any(found.any() for found in heads):
        return samples, 0
    stored: npt.NDArray[np.bool_] = np.any([*heads, *tails], axis=0)
    ends = np.stack([first, last], axis=1)[:, None, :]
    whole: npt.NDArray[np.bool_] = np.all(np.take_along_axis(stored, ends, axis=2), axis=2)
    if not np.all(whole):
        stored = _find_stored(store, mission, samples, int(times[0]), int(times[-1]))
    values = np.where(stored | whole[:, :, None], np.nan, samples.values)
    return replace(samples, values=values).where(np.any(np.isfinite(values), axis=(1, 2))), int(whole.sum())


def _find_stored(
    store: PrometheusStore, mission: Mission, samples: Samples, start_ms: int, end_ms: int
) -> npt.NDArray[np.bool_]:
    """Which of `samples` the store has, of those from `start_ms` to `end_ms`: bool[S, M, T]."""
    ignored = store.source.ignore_labels
    places = over_time.places([row.without(ignored) for row in samples.labels], samples.kinds())
    columns = {int(at): t for t, at in enumerate(samples.timestamps)}
    selector = f'{{__name__=~"{uncached(*dict.fromkeys(samples.metrics))}",{LABEL_MISSION}="{mission.name}"}}'
    at = EPOCH + timedelta(milliseconds=end_ms)
    # A window is open at its start; where a server takes the start in, the exact time below parts what is ours.
    answer = store.query(f"{selector}[{end_ms - start_ms + 1}ms]", at, url=store.source.readback_url)
    stored = np.zeros(samples.values.shape, dtype=np.bool_)
    for labels, kept in answer:
        place = places.get(labels.without(ignored) if ignored else labels)
        if place is not None:
            metric, row = place
            stored[row, metric, [columns[time] for time, _ in kept if time in columns]] = True
    return stored


def uncached(*names: str) -> str:
    """A regular expression for these metric names that no query had before.

    VictoriaMetrics remembers for ten seconds which series a selector matches, new ones or not (measured).
    """
    return "|".join((*names, f"at-{secrets.token_hex(4)}"))


def _newest_scores(store: PrometheusStore, items: Sequence[tuple[Mission, Scores]]) -> dict[tuple[str, Labels], int]:
    """By mission and label set, the time of the newest score in the store, in ms since the epoch."""
    by_grid: dict[Grid, dict[str, Mission]] = {}
    for mission, scores in items:
        if scores.grid.n:
            # Past the end too: a detection that was late meets the scores of the next one.
            end = scores.grid.end + mission.detect.catch_up
            by_grid.setdefault(Grid.covering(scores.grid.start, end, scores.grid.step), {})[mission.name] = mission
    newest: dict[tuple[str, Labels], int] = {}
    for grid, missions in by_grid.items():
        times = grid.epoch_ms()
        for name, panel in store.read_scores(list(missions.values()), grid).items():
            last = panel.grid.n - 1 - np.isfinite(panel.y)[:, ::-1].argmax(axis=1)
            for row, column in zip(panel.labels, last, strict=True):
                newest[name, row] = max(newest.get((name, row), -1), int(times[column]))
    return newest


def _explained(exc: RefusedError) -> StoreError:
    """What a refused write means, for the reasons that are known."""
    ahead = "`write: ahead` of a mission, or `write_mode: ahead` of the source"
    if re.search(r"out of bounds|too old", exc.text, re.IGNORECASE):
        return StoreError(
            f"{exc.message}; nothing of this request was stored",
            hint="Prometheus takes what is up to about an hour older than its newest sample, unless "
            f"`out_of_order_time_window` is set: is this time longer ago, or was the future written there ({ahead})?",
        )
    if _OUT_OF_ORDER.search(exc.text):
        return StoreError(
            f"{exc.message}; nothing of this request was stored",
            hint="the server has newer samples of these series: does another process write them, or is the future "
            f"written to a server that cannot hold it ({ahead})?",
        )
    if exc.status in (404, 405):
        return StoreError(
            exc.message,
            hint="check `write` of the source; Prometheus takes writes with --web.enable-remote-write-receiver",
        )
    return exc


def _dropped_rows(store: PrometheusStore) -> dict[str, float] | None:
    """Rows that VictoriaMetrics accepted and dropped since it started, by reason; `None` where it does not tell."""
    if not store.is_victoria_metrics:
        return None
    parts = urlsplit(store.source.write_url)
    url = urlunsplit((parts.scheme, parts.netloc, "/metrics", "", ""))
    try:
        page = store.client.request("GET", url, retry=False, deadline=5.0).decode(errors="replace")
    except StoreError:
        # Metrics of the server itself are often closed to its users; then a 204 is all there is.
        return None
    counters = re.findall(r"^vm_rows_(?:ignored|invalid)_total\{\w+=\"([^\"]*)\"\} (\S+)$", page, re.MULTILINE)
    return {reason: float(count) for reason, count in counters} or None


def _check_kept(store: PrometheusStore, blocks: Sequence[Samples], before: Mapping[str, float]) -> None:
    """Raise if the server dropped rows meanwhile and they were ours.

    Others may write beside us, so a counter that rose is a suspicion only: some of our samples are read back then.
    """
    # Rows are counted as dropped a second late, when the server sorts them in. Only what is old can meet its retention,
    # and what is younger than samples that were kept before cannot.
    oldest = min(int(block.timestamps[0]) for block in blocks if len(block.timestamps))
    safe = min(milliseconds(datetime.now(UTC) - _RECENT - EPOCH), store.kept_since)
    until = time.monotonic() + (0.0 if oldest >= safe else _COUNTER_DELAY)
    while True:
        after = _dropped_rows(store) or {}
        risen = {reason: int(count - before.get(reason, 0.0)) for reason, count in after.items()}
        risen = {reason: count for reason, count in risen.items() if count > 0}
        if risen or time.monotonic() >= until:
            break
        time.sleep(0.1)
    if not risen:
        if oldest < safe:
            store.kept_since = oldest
        return
    until = time.monotonic() + _VISIBLE_AFTER
    for metric, labels, at in _ends(blocks):
        while True:
            selector = f'{{__name__=~"{uncached(metric)}",{str(labels)[1:]}'
            if store.query(f"{selector}[1ms]", at, url=store.source.readback_url):
                break
            if time.monotonic() >= until:
                reasons = ", ".join(f"{count:,} as {reason}" for reason, count in risen.items())
                raise StoreError(
                    f"{store.name} accepted samples and dropped rows ({reasons}): "
                    f"{metric}{labels} has nothing at {at:%Y-%m-%dT%H:%M:%SZ}",
                    hint="small_timestamp is older than its -retentionPeriod, big_timestamp more than two days ahead "
                    "by its clock",
                )
            time.sleep(0.5)


def _ends(blocks: Sequence[Samples]) -> Iterator[tuple[str, Labels, datetime]]:
    """The oldest and the newest of these samples: metric, labels and time."""
    sent = [(block, np.argwhere(np.isfinite(block.values))) for block in blocks]
    found = [
        (int(block.timestamps[column]), block.metrics[metric], block.series(row, metric))
        for block, places in sent
        if len(places)
        for row, metric, column in (places[places[:, 2].argmin()], places[places[:, 2].argmax()])
    ]
    for end in (min, max):
        at, metric, labels = end(found, key=lambda sample: sample[0])
        yield metric, labels, EPOCH + timedelta(milliseconds=at)
