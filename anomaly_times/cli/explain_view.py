"""What `at explain` shows: for each series its numbers, its evidence, and what to try next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from anomaly_times.cli.backtest_views import series_name
from anomaly_times.cli.render import Section
from anomaly_times.cli.views import JSON_SCHEMA, Cell, counted, number, sparkline, stamp
from anomaly_times.deployed import Pause
from anomaly_times.durations import format_duration, iso_utc
from anomaly_times.evidence import LEVEL_SHIFT, REASONS
from anomaly_times.explain import Account, Closed, Explanation
from anomaly_times.scoring import format_score

__all__ = ["ExplainView", "Origin"]

_MEANING = {
    "point": "this value lies outside of the bounds",
    "sustained": "values have been odder than usual for an hour, on either side",
    "roughness": "the series moves more than usual from one point to the next",
    "drift": "values have lain on one side of the forecast for an hour or more",
    "flat": "the value has not moved for far longer than it ever did",
    "level shift": "values have lain far from the forecast, on one side, for most of an hour or longer",
    "out of range": "the value lies outside of `detect.valid_range`",
    "missing": "an expected value is not there",
}
_SPARK = 48
_NOTHING = 1e-6
"""Closer than that to its forecast, relatively, a value is as forecast."""


@dataclass(frozen=True)
class Origin:
    """Where a mission's definition came from: what `at` is to be told to find it again, and whether it rests."""

    arguments: tuple[str, ...] = ()
    """Of other commands on the same missions: files, or a query with its source."""
    deployed: bool = False
    pause: Pause | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExplainView:
    """An account in sections, for a terminal, for Markdown, and as JSON."""

    account: Account
    origin: Origin
    source: str

    def sections(self) -> list[Section]:
        """Each series, then what to try next."""
        found = []
        for each in self.account.series:
            found.append(self._numbers(each))
            if len(each.channels) > 1:
                found.append(_evidence(each))
        if self.account.others:
            left = counted(self.account.others, "other series", "other series")
            found.append(Section("And", (f"{left} with a lower score, or none: `--top 0` shows all",)))
        found.append(Section("Next", tuple(self._next())))
        return found

    def _numbers(self, each: Explanation) -> Section:
        account, step = self.account, self.account.mission.step
        at = stamp(account.at)
        rows: list[tuple[Cell, ...]] = [("score", self._score(each))]
        rows += [("why", line) for line in self._why(each)]
        if account.known or np.isfinite(each.value):
            rows.append(("value", _beside(each.value, each.yhat)))
        band = f"{number(each.yhat)}, bounds {number(each.lower)} … {number(each.upper)}"
        rows.append(("forecast", band if np.isfinite(each.yhat) else "none"))
        if each.cutoff is not None:
            age = account.at - each.cutoff
            rows.append(
                (
                    "made from",
                    f"what was known at {self._clock(each.cutoff)}: {format_duration(age)}, {age // step} steps before",
                )
            )
        if account.known:
            rows.append(("yesterday", _beside(each.yesterday, each.yhat)))
            rows.append(("last week", _beside(each.last_week, each.yhat)))
        over = f"{each.over} of the last {account.recent.n} points over {account.mission.alert.above:g}"
        if each.over_since is not None:
            over += f"; it has been over since {self._began(each.over_since)}"
        rows.append(("lately", over))
        if np.isfinite(each.incident) and each.incident_since is not None:
            rows.append(("incident", f"lasts since {self._began(each.incident_since)}"))
        rows.append(("alert", self._alert()))
        line, what = (each.values, "values") if np.isfinite(each.values).any() else (each.scores, "scores")
        with np.errstate(invalid="ignore"):
            shown = sparkline(line, each.scores > account.mission.alert.above, width=_SPARK)
        if shown:
            rows.append((f"{what}, {format_duration(account.recent.n * step)}", shown))
        return Section(
            series_name(each.labels) if each.labels else account.mission.promql,
            (),
            ("", f"{account.mission.name} at {at} UTC"),
            tuple(rows),
        )

    def _score(self, each: Explanation) -> Cell:
        if np.isnan(each.score):
            return [("none", "muted")]
        style = "bad" if each.score > self.account.mission.alert.above else "good"
        return [(format_score(each.score), style), (f" {each.reason}" if each.reason else "", "")]

    def _why(self, each: Explanation) -> list[str]:
        lines = []
        if each.reason and each.score > self.account.mission.alert.above:
            lines.append(_MEANING[each.reason])
        elif each.reason:
            lines.append(f"nothing anomalous: {each.score:.0%} of the way to the limit of {each.reason}")
        lines += [_gate_in_words(gate, self.account) for gate in each.gates]
        if each.differs:
            now = f"{format_score(each.again)} {each.again_reason}".rstrip()
            was = "none is stored" if np.isnan(each.score) else "it was scored"
            lines.append(f"{was}, and from what is stored now it would be {now}: a value or a forecast came later")
        return lines or (["close to its forecast"] if each.score == each.score else ["no score is stored"])

    def _alert(self) -> str:
        alert, above = self.account.alert, self.account.mission.alert.above
        over = f"{counted(alert.over, 'series', 'series')} over {above:g}"
        if alert.fired is None or alert.began is None:
            return f"not out; {over}" if alert.over else "not out"
        ended = f", last over at {self._clock(alert.ended)}" if alert.ended is not None else ""
        return f"fires since {self._clock(alert.fired)}, of what began at {self._clock(alert.began)}{ended}; {over}"

    def _clock(self, at: datetime) -> str:
        return stamp(at, day=at.date() != self.account.at.date())

    def _began(self, at: datetime) -> str:
        return self._clock(at) + (" or before" if at == self.account.recent.start else "")

    def _next(self) -> list[str]:
        """Commands that go on from here."""
        account, origin = self.account, self.origin
        name = account.mission.name
        if not account.known:
            return [f"at explain FILES --mission {name}", "at explain --promql QUERY …"]
        lines = []
        shifted = [each for each in account.series if each.reason == REASONS[LEVEL_SHIFT]]
        if shifted and (since := shifted[0].over_since or shifted[0].incident_since) is not None:
            files = "" if origin.deployed else " ".join(["", *map(shlex.quote, origin.arguments)])
            lines.append(f"at mission rebase {name}{files} --since {iso_utc(since)}  # the level is there to stay")
        if origin.deployed and account.alert.over and origin.pause is None:
            lines.append(f"at mission pause {name} --for 1h --reason …  # it is known")
        if any(gate.gate == "forecast" for each in account.series for gate in each.gates) and origin.deployed:
            lines.append(f"at mission run {name}  # a forecast at once")
        arguments = " ".join(map(shlex.quote, origin.arguments))
        lines.append(f"at backtest {arguments} --last 7d --plot report.html  # how often that would have been told")
        return lines

    def notes(self) -> list[str]:
        """What could not be told, and where the mission came from."""
        notes = [*self.origin.notes, *self.account.notes]
        if self.origin.pause is not None:
            until = f" until {stamp(self.origin.pause.until)} UTC" if self.origin.pause.until else ""
            reason = f": {self.origin.pause.reason}" if self.origin.pause.reason else ""
            notes.append(f"{self.account.mission.name} is paused{until}{reason}")
        return notes

    def document(self) -> dict[str, Any]:
        """The whole result for JSON."""
        account, alert = self.account, self.account.alert
        return {
            "schema": JSON_SCHEMA,
            "kind": "explain",
            "mission": account.mission.name,
            "promql": account.mission.promql if account.known else None,
            "source": self.source,
            "at": iso_utc(account.at),
            "step": format_duration(account.mission.step),
            "known": account.known,
            "alert": {
                "above": account.mission.alert.above,
                "over": alert.over,
                "began": _iso(alert.began),
                "fired": _iso(alert.fired),
                "ended": _iso(alert.ended),
            },
            "times": [iso_utc(account.recent.start + i * account.recent.step) for i in range(account.recent.n)],
            "series": [_entry(each) for each in account.series],
            "others": account.others,
            "next": self._next(),
            "notes": self.notes(),
        }


def _evidence(each: Explanation) -> Section:
    rows: list[tuple[Cell, ...]] = []
    for channel in each.channels:
        share = "" if np.isnan(channel.ratio) else f"{channel.ratio:.2f}"
        limit = "none" if np.isinf(channel.limit) else number(channel.limit)
        style = "bad" if channel.ratio > 1 and not channel.closed else ""
        closed = ", ".join(channel.closed)
        rows.append((channel.name, number(channel.evidence), number(channel.usual), limit, [(share, style)], closed))
    columns = ("channel", ">evidence", ">usual", ">limit", ">on its way", "closed by")
    return Section("Evidence", (), columns, tuple(rows))


def _beside(value: float, yhat: float) -> str:
    """A value, and how far it is from the forecast."""
    if np.isnan(value):
        return "none"
    if np.isnan(yhat):
        return number(value)
    error = value - yhat
    share = f" ({abs(error) / abs(yhat):.0%})" if yhat and abs(error) < 1e3 * abs(yhat) else ""
    if abs(error) <= _NOTHING * abs(yhat):
        return f"{number(value)}, as forecast"
    return f"{number(value)}, {number(abs(error))}{share} {'above' if error > 0 else 'below'} the forecast"


def _gate_in_words(gate: Closed, account: Account) -> str:
    """What a gate did, with its numbers."""
    detect = account.mission.detect
    would = f"; without it: {format_score(gate.without)} {gate.reason}".rstrip() if np.isfinite(gate.without) else ""
    if gate.gate == "forecast":
        return "no forecast is stored for this time, so there is no score"
    if gate.gate == "missing":
        says = {"ignore": "so there is no score", "zero": "and it counts as 0", "anomaly": "which counts as anomalous"}
        return f"the value is missing, {says[detect.missing]} (`detect.missing: {detect.missing}`)"
    if gate.gate == "valid_range":
        low, high = detect.valid_range
        return (
            f"{number(gate.found)} is outside of `detect.valid_range` [{low:g}, {high:g}]: "
            f"that scores {format_score(detect.out_of_range_score)}, whatever else is so{would}"
        )
    if gate.gate == "direction":
        side = {1.0: "it is above the forecast", -1.0: "it is below the forecast"}.get(gate.found, "this has no side")
        return f"{_channel(gate)}{side}, and `detect.direction` is {detect.direction}: that counts as 0{would}"
    if gate.gate == "min_deviation":
        least = f"`detect.min_deviation` {number(gate.asked)}"
        return f"{_channel(gate)}{number(gate.found)} is less than {least}: that counts as 0{would}"
    return (
        f"{_channel(gate)}{gate.found:.1%} of the forecast is less than `detect.min_relative_deviation` "
        f"{gate.asked:.4g}: that counts as 0{would}"
    )


def _channel(gate: Closed) -> str:
    return "" if gate.channel == "point" else f"{gate.channel}: "


def _entry(each: Explanation) -> dict[str, Any]:
    return {
        "labels": dict(each.labels),
        "stored_labels": dict(each.written),
        "value": _finite(each.value),
        "yhat": _finite(each.yhat),
        "lower": _finite(each.lower),
        "upper": _finite(each.upper),
        "score": _finite(each.score),
        "reason": each.reason or None,
        "scored_again": _finite(each.again),
        "differs": each.differs,
        "gates": [
            {
                "gate": gate.gate,
                "channel": gate.channel or None,
                "found": _finite(gate.found),
                "asked": _finite(gate.asked),
                "without": _finite(gate.without),
                "reason": gate.reason or None,
            }
            for gate in each.gates
        ],
        "evidence": [
            {
                "channel": channel.name,
                "evidence": _finite(channel.evidence),
                "usual": _finite(channel.usual),
                "limit": _finite(channel.limit),
                "ratio": _finite(channel.ratio),
                "closed": list(channel.closed),
            }
            for channel in each.channels
        ],
        "incident_since": _iso(each.incident_since),
        "over": each.over,
        "over_since": _iso(each.over_since),
        "yesterday": _finite(each.yesterday),
        "last_week": _finite(each.last_week),
        "forecast_cutoff": _iso(each.cutoff),
        "values": _list(each.values.tolist()),
        "scores": _list(each.scores.tolist()),
    }


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _list(values: Sequence[float]) -> list[float | None]:
    return [_finite(value) for value in values]


def _iso(at: datetime | None) -> str | None:
    return iso_utc(at) if at is not None else None
