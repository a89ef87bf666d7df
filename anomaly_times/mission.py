"""A mission: one PromQL query that is forecast and watched.

A mission is what a user writes; it is frozen, refuses fields that it does not know, and never holds a URL or a secret
(it names a source from the settings).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from anomaly_times.conventions import LABEL_METRIC, LABEL_MISSION, MISSION_NAME, written_labels
from anomaly_times.cron import longest_pause, normal_cron
from anomaly_times.durations import Duration, DurationOrZero, format_duration, milliseconds, parse_duration
from anomaly_times.panel import Grid, Labels
from anomaly_times.settings import WriteMode

__all__ = [
    "Alert",
    "Budget",
    "Detect",
    "Direction",
    "Exclusion",
    "Forecasting",
    "Gate",
    "Incident",
    "Missing",
    "Mission",
    "ModelSpec",
    "Silence",
    "Watched",
]

Direction = Literal["both", "above", "below"]
Missing = Literal["ignore", "zero", "anomaly"]
Watched = Literal["all", "point"]
Budget = Literal["series", "mission"]

MOST_ALERTS = 168.0
"""A week: one an hour. Who wants more wants a plain interval."""
MOST_POINTS = 1440
"""That `alert.points` may be about: a day of minutely ones."""


class _Spec(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=True, serialize_by_alias=True, ser_json_inf_nan="strings"
    )


class ModelSpec(BaseModel):
    """Which model, with which parameters: `profile`, or `{type: lgbm, lags: 48}`."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: str = "auto"

    @property
    def params(self) -> dict[str, Any]:
        """The model's own parameters."""
        return dict(self.__pydantic_extra__ or {})


def _check_label_name(name: str, *, taken: Sequence[str]) -> None:
    if name in (*taken, "__name__"):
        raise ValueError(f"the label {name!r} is ours")
    if not (name.isascii() and name.replace("_", "a").isalnum() and not name[:1].isdigit()):
        raise ValueError(f"{name[:64]!r} is no label name")


def _no_switch(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a number of alerts: 0.5 is one in two weeks")
    return value


def _model(value: object) -> object:
    return {"type": value} if isinstance(value, str) else value


def _pair(value: object) -> object:
    return (value, value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else value


def _ratio(value: object) -> object:
    """`20%` is 0.2."""
    if isinstance(value, str) and value.strip().endswith("%"):
        return float(value.strip().removesuffix("%")) / 100
    return value


def _ratio_pair(value: object) -> object:
    pair = _pair(value)
    return tuple(_ratio(side) for side in pair) if isinstance(pair, (list, tuple)) else pair


NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _one_or_two(side: dict[str, Any], title: str) -> WithJsonSchema:
    """What an editor may offer: one value for both sides, or [below, above]."""
    pair = {"type": "array", "items": side, "minItems": 2, "maxItems": 2}
    return WithJsonSchema({"title": title, "anyOf": [side, pair]})


_PERIOD: dict[str, Any] = TypeAdapter(Duration).json_schema()
_NOT_NEGATIVE: dict[str, Any] = {"type": "number", "minimum": 0}
_SHARE: dict[str, Any] = {"anyOf": [_NOT_NEGATIVE, {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*%\s*$"}]}
SidePair = Annotated[
    tuple[NonNegative, NonNegative],
    BeforeValidator(_pair),
    _one_or_two(_NOT_NEGATIVE, "Number, or [below, above]"),
]
RatioPair = Annotated[
    tuple[NonNegative, NonNegative], BeforeValidator(_ratio_pair), _one_or_two(_SHARE, "Share, or [below, above]")
]
ScalePair = Annotated[
    tuple[Positive, Positive],
    BeforeValidator(_pair),
    _one_or_two({"type": "number", "exclusiveMinimum": 0}, "Number, or [below, above]"),
]


class Exclusion(_Spec):
    """A stretch of history that no model may learn from: both ends inclusive, UTC where no zone is given."""

    start: datetime = Field(description="the first time to leave out")
    end: datetime = Field(description="the last time to leave out")

    @field_validator("start", "end")
    @classmethod
    def _zoned(cls, value: datetime) -> datetime:
        return value if value.tzinfo else value.replace(tzinfo=UTC)

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if not self.start < self.end:
            raise ValueError("must begin before it ends")
        return self


def _instant(value: object) -> datetime:
    """A time that names its zone, in UTC."""
    try:
        at = datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        at = None
    if not isinstance(at, datetime) or not 1980 <= at.year <= 2200:
        raise ValueError(f"{str(value)[:40]!r} is no time; write it like 2026-03-01T12:00Z")
    if at.tzinfo is None:
        raise ValueError("a time needs a zone here: 2026-03-01T12:00Z is UTC, 2026-03-01T13:00+01:00 is the same")
    return at.astimezone(UTC)


Cron = Annotated[str, AfterValidator(normal_cron)]


class _Cadence(_Spec):
    """When something is done: `every` so long, or by a cron line."""

    every: Duration
    cron: Cron | None = Field(default=None, description="five fields, in the mission's `timezone`; instead of `every`")

    @property
    def period(self) -> timedelta:
        """`every`, or the longest pause of `cron`: how long what was done must last."""
        return longest_pause(self.cron) if self.cron else self.every

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.cron and "every" in self.model_fields_set:
            raise ValueError("`every` and `cron` say two things: keep one of them")
        return self


class Forecasting(_Cadence):
    """How history becomes a forecast."""

    every: Duration = Field(default=parse_duration("1h"), description="how often a forecast is made")
    lookback: Duration = Field(default=parse_duration("14d"), description="how much history a forecast reads")
    horizon: Duration | None = Field(default=None, description="how far it reaches; twice `every` by default")
    model: Annotated[ModelSpec, BeforeValidator(_model)] = Field(
        default=ModelSpec(), description="a name (`at models` lists them), or `{type: ets, …parameters}`"
    )
    level: float | None = Field(
        default=None,
        gt=0,
        lt=100,
        description="per cent of normal points inside the bounds, in place of `detect.alerts_per_week`",
    )
    interval_scale: ScalePair = Field(default=(1.0, 1.0), description="widens the bounds: [below, above], or one")
    exclude: tuple[Exclusion, ...] = Field(default=(), description="stretches of history not to learn from")
    rebase: Annotated[datetime, BeforeValidator(_instant)] | None = Field(
        default=None,
        description="since when the series have another level for good; older history is moved to that level",
    )


class Detect(_Cadence):
    """How new points are held against the forecast."""

    every: Duration = Field(default=parse_duration("1m"), description="how often new points are scored")
    alerts_per_week: Annotated[float, BeforeValidator(_no_switch)] = Field(
        default=0.5, gt=0, le=MOST_ALERTS, allow_inf_nan=False, description="false alarms that normal data may raise"
    )
    per: Budget = Field(default="series", description="whose `alerts_per_week` it is: each series', or the mission's")
    evidence: Watched = Field(
        default="all",
        description="`all`: points, and what lasts, roughens, drifts or stands still; `point`: points alone",
    )
    direction: Direction = Field(default="both", description="the side of the forecast that counts as anomalous")
    min_deviation: SidePair = Field(default=(0.0, 0.0), description="smaller deviations score 0: [below, above]")
    min_relative_deviation: RatioPair = Field(default=(0.0, 0.0), description="the same, as a share of the forecast")
    valid_range: tuple[float, float] = Field(default=(float("-inf"), float("inf")), description="values that can be")
    out_of_range_score: float = Field(default=1.01, ge=0, le=1000, description="score of a value that cannot be")
    missing: Missing = Field(default="ignore", description="what an expected point that is not there means")
    catch_up: Duration = Field(default=parse_duration("1h"), description="how far back a late detection goes")

    @field_validator("valid_range")
    @classmethod
    def _rising(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not value[0] < value[1]:
            raise ValueError("must be [lowest, highest]")
        return value


_USUAL = Detect()


def _points(text: str) -> str:
    """`3 of 5`, spelled in one way."""
    found = re.fullmatch(r"\s*(\d{1,4})\s+of\s+(\d{1,4})\s*", text, re.ASCII)
    least, newest = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= least <= newest <= MOST_POINTS:
        raise ValueError(f"{text[:64]!r} is no number of points; write it like 3 of 5, of {MOST_POINTS} at most")
    return f"{least} of {newest}"


Points = Annotated[
    str,
    AfterValidator(_points),
    WithJsonSchema({"type": "string", "title": "k of n", "pattern": r"^\s*\d{1,4}\s+of\s+\d{1,4}\s*$"}),
]


class Alert(_Spec):
    """When somebody is told; what `at rules` writes."""

    above: Positive = Field(default=1.0, description="a score over this is anomalous")
    for_: DurationOrZero = Field(
        default=parse_duration("5m"), alias="for", description="so long, before anybody is told"
    )
    points: Points | None = Field(
        default=None, description="so many of a series' newest points, like `3 of 5`, before anybody is told; no `for`"
    )
    keep_firing_for: DurationOrZero = Field(
        default=parse_duration("1h"), description="what comes back within that time is the same alert"
    )
    per_series: bool = Field(default=False, description="an alert for each series, instead of one a mission")
    labels: dict[str, str] = Field(default_factory=dict, description="labels of the alert, e.g. severity")

    @field_validator("labels")
    @classmethod
    def _ours(cls, labels: dict[str, str]) -> dict[str, str]:
        for name in labels:
            _check_label_name(name, taken=("alertname", LABEL_MISSION))
        return labels

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        # By value: a mission that was deployed spells every field.
        if self.points and self.for_ not in (timedelta(0), type(self).model_fields["for_"].default):
            raise ValueError("`for` and `points` say two things: keep one of them")
        return self

    @property
    def lasting(self) -> timedelta:
        """How long it must last before anybody is told: `for`, and nothing where `points` decide."""
        return timedelta(0) if self.points else self.for_

    @property
    def least_of_newest(self) -> tuple[int, int]:
        """How many of how many newest points must be over; (1, 1) where `for` decides."""
        least, _, newest = (self.points or "1 of 1").partition(" of ")
        return int(least), int(newest)


class Incident(_Spec):
    """Something that went wrong: both ends inclusive, UTC where no zone is given."""

    name: str = Field(default="", description="what it is called")
    start: datetime = Field(description="when it began")
    end: datetime = Field(description="when it was over")
    match: str = Field(default="", description='the series that it concerns, like `{service="checkout"}`; all if empty')

    @field_validator("start", "end")
    @classmethod
    def _zoned(cls, value: datetime) -> datetime:
        return value if value.tzinfo else value.replace(tzinfo=UTC)

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.end < self.start:
            raise ValueError("must not end before it begins")
        return self


class Gate(_Spec):
    """What `at backtest --check` asks for."""

    max_alerts_per_week: NonNegative | None = Field(default=None, description="so many alerts a week at most")
    must_detect: tuple[str, ...] = Field(default=(), description="names of incidents that must be found")


class Silence(_Spec):
    """A check that is known and accepted here, and why."""

    code: str = Field(pattern=r"^[a-z0-9]+(?:[/-][a-z0-9]+)*$", description="e.g. `promql/short-window`")
    reason: str = Field(min_length=1, description="why it is accepted")


def _season(value: object) -> object:
    if value in ("none", False):
        return ()
    if value in ("auto", None):
        return None
    return value if isinstance(value, (list, tuple)) else (value,)


_SEASON = WithJsonSchema({"anyOf": [{"enum": ["auto", "none"]}, _PERIOD, {"type": "array", "items": _PERIOD}]})


class Mission(_Spec):
    """One query that is forecast and watched, and everything that its results depend on."""

    name: str = Field(description="unique on a Prefect server; the label `mission` of everything written")
    promql: str = Field(min_length=1, description="the query; each series that it answers is watched")
    description: str = Field(default="", description="what it is for, in a sentence")
    source: str = Field(default="", description="a source from the settings; the default one if empty")
    step: Duration = Field(default=parse_duration("1m"), description="time between two points")
    offset: DurationOrZero = Field(default=parse_duration("30s"), description="how late samples may arrive")
    timezone: str = Field(default="UTC", description="IANA name; days and weeks of the season begin by its clock")
    season: Annotated[tuple[Duration, ...] | None, BeforeValidator(_season), _SEASON] = Field(
        default=None, description="`auto` (found in the data), `none`, or periods: [1d, 1w]"
    )
    max_series: int = Field(
        default=10_000, ge=1, le=1_000_000, description="a query that answers more is refused, lest it flood the source"
    )
    write: WriteMode = Field(
        default=WriteMode.AUTO, description="`ahead`, at the times that forecasts are for, or `at_detection`"
    )
    labels: dict[str, str] = Field(default_factory=dict, description="added to everything written")
    forecast: Forecasting = Field(default=Forecasting(), description=Forecasting.__doc__)
    detect: Detect = Field(default=Detect(), description=Detect.__doc__)
    alert: Alert = Field(default=Alert(), description=Alert.__doc__)
    incidents: tuple[Incident, ...] = Field(
        default=(), description="what went wrong in the past; `at backtest` tells which of it would have been found"
    )
    backtest: Gate = Field(default=Gate(), description=Gate.__doc__)
    isolated: bool = Field(default=False, description="a schedule of its own, instead of a place in a pack")
    silence: tuple[Silence, ...] = Field(default=(), description="checks that are accepted here")

    @field_validator("name")
    @classmethod
    def _slug(cls, name: str) -> str:
        if not MISSION_NAME.fullmatch(name):
            raise ValueError("must be lower-case letters, digits and hyphens, 63 at most, no hyphen first")
        return name

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (KeyError, OSError, ValueError) as exc:
            raise ValueError(f"{name[:64]!r} is no time zone; use an IANA name like Europe/Berlin") from exc
        return name

    @field_validator("labels")
    @classmethod
    def _free(cls, labels: dict[str, str]) -> dict[str, str]:
        for name in labels:
            _check_label_name(name, taken=(LABEL_MISSION, LABEL_METRIC))
        return labels

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.h > milliseconds(self.step) - 2:
            raise ValueError(
                f"a horizon of {self.h} steps does not fit: forecasts are told apart by milliseconds inside a step, "
                f"so {format_duration(self.step)} holds {milliseconds(self.step) - 2} at most"
            )
        if self.forecast.lookback < 2 * self.step:
            raise ValueError("the lookback must cover two steps at least")
        if self.horizon < self.step:
            raise ValueError("the horizon must cover one step at least")
        # By value: a mission that was deployed spells every field.
        others = [name for name in ("alerts_per_week", "per") if getattr(self.detect, name) != getattr(_USUAL, name)]
        if self.forecast.level is not None and others:
            raise ValueError(
                f"`forecast.level` and `detect.{others[0]}` say two things: keep the interval, or the alert budget"
            )
        return self

    @property
    def horizon(self) -> timedelta:
        """How far a forecast reaches past its cutoff."""
        return self.forecast.horizon or 2 * self.forecast.period

    @property
    def watches_over_time(self) -> bool:
        """Whether more than single points counts as evidence; an interval of so many per cent is about points."""
        return self.detect.evidence == "all" and self.forecast.level is None

    @property
    def h(self) -> int:
        """The horizon in steps, rounded down."""
        return self.horizon // self.step

    @property
    def score_stands(self) -> timedelta:
        """For how long a score goes for its series where none follows it, in whole steps.

        Its own step, two cadences (a series may lack a point, a pass may fail) and the offset: what alert rules look
        back, and what a backtest bridges.
        """
        cadences = 2 * max(1, -(-self.detect.period // self.step))
        return (1 + cadences - (-self.offset // self.step)) * self.step

    def last_time(self, now: datetime) -> datetime:
        """The last grid time that is complete at `now`: the last one not after now − offset."""
        return Grid.ending(now - self.offset, self.step, 1).start

    def history_grid(self, now: datetime) -> Grid:
        """What a forecast made at `now` reads: `lookback` up to the cutoff, which is the last complete time."""
        return Grid.ending(now - self.offset, self.step, max(2, self.forecast.lookback // self.step))

    def detect_grid(self, now: datetime, window: timedelta) -> Grid:
        """The grid times of the last `window` up to the last complete one (at least one point)."""
        return Grid.ending(now - self.offset, self.step, max(1, window // self.step))

    def written_labels(self, labels: Sequence[Labels]) -> tuple[Labels, ...]:
        """The labels, less `__name__`, under which results for these series are written."""
        extra = tuple(self.labels.items())
        return tuple(_written_labels(row, self.name, extra) for row in labels)


# The same series are scored minute after minute.
@lru_cache(maxsize=200_000)
def _written_labels(source: Labels, mission: str, extra: tuple[tuple[str, str], ...]) -> Labels:
    return written_labels(source, mission, dict(extra))
