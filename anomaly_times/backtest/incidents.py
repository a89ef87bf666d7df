"""Labelled incidents: what went wrong, and which of it alerts would have told."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from anomaly_times.backtest.alerts import Alert
from anomaly_times.errors import MissionError, QueryError, UsageError, in_our_words
from anomaly_times.mission import Incident
from anomaly_times.panel import Grid, Labels
from anomaly_times.stores.parquet import Selector
from anomaly_times.yamlfile import YamlError, read_documents

__all__ = ["ECHO", "Labelled", "Outcome", "Verdict", "judge", "read_incidents"]

ECHO = timedelta(hours=1)
"""An alert that begins so soon after an incident still tells of it: it is no false alarm."""
_PATH = re.compile(r"[^{}]*\.(csv|csv\.gz|parquet)")


@dataclass(frozen=True)
class Labelled:
    """An incident, and the mission that it is about; empty for any."""

    incident: Incident
    mission: str = ""

    @property
    def name(self) -> str:
        """What it is called, by its series where it has no name."""
        return self.incident.name or self.incident.match or "incident"

    def concerns(self, labels: Sequence[Labels]) -> frozenset[Labels]:
        """Which of these series it is about.

        Raises:
            MissionError: `match` is no selector.
        """
        if not self.incident.match:
            return frozenset(labels)
        try:
            return frozenset(row for _, row in Selector(self.incident.match).matching(labels))
        except QueryError as exc:
            raise MissionError(
                f"incident {self.name}: match: {self.incident.match!r} is no label selector",
                hint='write it like {service="checkout"}',
            ) from exc


@dataclass(frozen=True)
class Outcome:
    """What became of an incident of some series: `delay` from its start until somebody was told; `None`: nobody was."""

    name: str
    start: datetime
    end: datetime
    delay: timedelta | None
    series: frozenset[Labels] = frozenset()

    @property
    def found(self) -> bool:
        """Whether somebody was told before it was over."""
        return self.delay is not None


@dataclass(frozen=True)
class Verdict:
    """The outcome of every incident in the window, and the alerts that belong to none.

    `outside` counts incidents that lie outside of the window, `unseen` those that concern no series here.
    """

    outcomes: tuple[Outcome, ...]
    false_alarms: tuple[Alert, ...]
    outside: int = 0
    unseen: int = 0

    @property
    def found(self) -> int:
        """How many incidents were found."""
        return sum(outcome.found for outcome in self.outcomes)

    @property
    def delay(self) -> timedelta | None:
        """The median delay of those that were found."""
        delays = sorted(outcome.delay for outcome in self.outcomes if outcome.delay is not None)
        return delays[(len(delays) - 1) // 2] if delays else None


def judge(
    mission: str, incidents: Sequence[Labelled], alerts: Sequence[Alert], labels: Sequence[Labels], grid: Grid
) -> Verdict:
    """Which incidents a mission's alerts told of in time, and which alerts told of nothing.

    An incident is found by an alert that fires before it is over, with a series that it concerns over its limit while
    it lasts. An alert with such a series from the start of an incident to `ECHO` after its end is no false alarm.

    Args:
        mission: its name.
        incidents: of any mission.
        alerts: of this one.
        labels: its series.
        grid: the time that was looked at.

    Raises:
        MissionError: the `match` of an incident is no selector.
    """
    outcomes: list[Outcome] = []
    explained: set[int] = set()
    outside = unseen = 0
    for labelled in incidents:
        if labelled.mission not in ("", mission):
            continue
        start, end = labelled.incident.start, labelled.incident.end
        concerned = labelled.concerns(labels)
        if not concerned:
            unseen += 1
            continue
        if end < grid.start or start > grid.end:
            outside += 1
            continue
        delays = []
        for i, alert in enumerate(alerts):
            own = [each for each in alert.episodes if each.labels in concerned and each.end >= start]
            if any(each.start <= end + ECHO for each in own):
                explained.add(i)
            if alert.fired <= end and any(each.start <= end for each in own):
                delays.append(max(timedelta(0), alert.fired - start))
        outcomes.append(Outcome(labelled.name, start, end, min(delays, default=None), concerned))
    outcomes.sort(key=lambda each: (each.start, each.name))
    return Verdict(
        tuple(outcomes), tuple(alert for i, alert in enumerate(alerts) if i not in explained), outside, unseen
    )


def read_incidents(file: Path) -> list[Labelled]:
    """The incidents of a YAML, JSON or CSV file.

    A list (by itself, or under `incidents:`) of `{start, end}` with `name`, `match` and `mission` where they are known;
    a CSV with such columns; or a mapping, as in the labels of the Numenta Anomaly Benchmark:
    `{SERIES: [[START, END], …]}`, where SERIES is a selector or the file that holds the series.

    Raises:
        UsageError: the file cannot be read or understood; names the item.
    """
    try:
        raw = file.read_bytes()
    except OSError as exc:
        raise UsageError(f"{file} cannot be read: {exc.strerror}", hint="--incidents takes YAML, JSON or CSV") from exc
    try:
        items = list(_from_csv(raw) if file.suffix == ".csv" else _from_yaml(raw))
    except YamlError as exc:
        raise UsageError(f"{file}:{exc.line}: {exc.message}") from exc
    except (UnicodeDecodeError, csv.Error) as exc:
        raise UsageError(f"{file} is no CSV: {exc}") from exc
    found = []
    for i, item in enumerate(items, start=1):
        if not isinstance(item, Mapping):
            raise UsageError(f"{file}: incident {i} is {json.dumps(item, default=str)[:64]}", hint=_SHAPE)
        fields = {key: value for key, value in item.items() if value not in (None, "")}
        mission = str(fields.pop("mission", ""))
        try:
            found.append(Labelled(Incident.model_validate(fields), mission))
        except ValidationError as exc:
            first = exc.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            text = f"{where}: {in_our_words(first['msg'])}".removeprefix(": ")
            raise UsageError(f"{file}: incident {i}: {text}", hint=_SHAPE) from None
    return found


_SHAPE = "an incident has `start` and `end`, and may have `name`, `match` and `mission`"


def _from_csv(raw: bytes) -> Iterator[Mapping[str, Any]]:
    yield from csv.DictReader(io.StringIO(raw.decode("utf-8-sig")), strict=True)


def _from_yaml(raw: bytes) -> Iterator[Any]:
    for document in read_documents(raw):
        data = document.data
        if isinstance(data, Mapping) and set(data) == {"incidents"}:
            data = data["incidents"]
        if isinstance(data, Mapping):
            for series, windows in data.items():
                for window in windows if isinstance(windows, list) else [windows]:
                    pair = isinstance(window, list) and len(window) == 2
                    yield {"match": _selector(series), "start": window[0], "end": window[1]} if pair else window
        elif data is not None:
            yield from data if isinstance(data, list) else [data]


def _selector(series: str) -> str:
    """A selector as it is; of a file of metrics, that of the metric which it is taken to hold."""
    if not _PATH.fullmatch(series):
        return series
    stem = Path(series).name.removesuffix(".gz").rpartition(".")[0]
    return re.sub(r"[^a-zA-Z0-9_:]", "_", stem)
