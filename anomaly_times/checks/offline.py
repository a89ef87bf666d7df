"""What a mission says about itself: checks that need no server."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from functools import lru_cache

from anomaly_times.checks.registry import CHECKS, LOADING, Found, Subject, check
from anomaly_times.deployed import DeployedMission, to_value
from anomaly_times.durations import EPOCH, format_duration, iso_utc
from anomaly_times.errors import MissingExtraError, MissionError, ModelError
from anomaly_times.mission import Mission, ModelSpec
from anomaly_times.models import build_model
from anomaly_times.models.cost import long_forecast
from anomaly_times.settings import WriteMode
from anomaly_times.stores.promql import NoVectorError, point_at

__all__ = ["COUNTER_SUFFIXES", "counts_only"]

COUNTER_SUFFIXES = ("_total", "_count", "_sum", "_bucket")

_SOONEST = timedelta(seconds=1)
_CLOCKS_DIFFER = timedelta(minutes=1)

# What turns a counter into something that can be forecast, or does not look at its value.
_TAKES_COUNTERS = frozenset(
    ("rate", "irate", "increase", "resets", "changes", "delta", "idelta", "deriv", "timestamp")
).union(("count", "group", "absent", "absent_over_time", "present_over_time", "count_over_time"))


@check("promql/syntax", "error")
def syntax(subject: Subject) -> Iterator[Found]:
    """A query that no server takes, or that this one refuses."""
    if isinstance(subject.refusal, NoVectorError):
        return
    error = subject.refusal or (subject.evidence.refused if subject.evidence else None)
    if error:
        yield Found(("promql",), error.message, error.hint)
    elif subject.query and subject.query.broken:
        place = "" if subject.query.position is None else "\n" + point_at(subject.query.text, subject.query.position)
        yield Found(("promql",), f"the query does not parse: {subject.query.problem}{place}")


@check("promql/no-vector", "error")
def no_vector(subject: Subject) -> Iterator[Found]:
    """A query that answers a number, a string or raw samples."""
    if isinstance(subject.refusal, NoVectorError):
        yield Found(("promql",), subject.refusal.message, subject.refusal.hint)


@check("promql/metricsql", "warning")
def metricsql(subject: Subject) -> Iterator[Found]:
    """A query that is no PromQL; the server decides, so this is for those that nobody asked."""
    query = subject.query
    if query and query.problem and not query.broken and subject.evidence is None:
        place = "" if query.position is None else "\n" + point_at(query.text, query.position)
        yield Found(
            ("promql",),
            f"the query is no PromQL: {query.problem}{place}",
            "as MetricsQL it may be right for VictoriaMetrics: a validation with a server tells",
        )


@check("promql/bare-counter", "warning")
def bare_counter(subject: Subject) -> Iterator[Found]:
    """A counter without `rate`: it only grows, and falls to zero when a process starts."""
    types = subject.evidence.types if subject.evidence else {}
    for use in dict.fromkeys(subject.query.uses if subject.query else ()):
        if counts_only(use.metric, types.get(use.metric, "")) and not _TAKES_COUNTERS & set(use.around):
            yield Found(
                ("promql",),
                f"{use.metric} is a counter: it only grows, until its process starts anew",
                f"watch how fast it grows: rate({use.selector}[5m])",
            )


def counts_only(metric: str, kind: str) -> bool:
    """Whether `metric` is a counter: by its type where that is known (`kind`), else by its name."""
    return kind == "counter" if kind else metric.endswith(COUNTER_SUFFIXES)


@check("forecast/horizon-holes", "error")
def horizon_holes(subject: Subject) -> Iterator[Found]:
    """A forecast that ends before the next one is there."""
    mission = subject.mission
    needed = _must_last(mission)
    reach = mission.h * mission.step
    if reach < needed:
        whole = f", in whole steps of {format_duration(mission.step)}," if reach < mission.horizon else ""
        yield Found(
            ("forecast", "horizon" if mission.forecast.horizon else "every"),
            f"the forecast reaches {format_duration(reach)}{whole} and must last {format_duration(needed)}, until "
            "the next one is made and a detection sees it: points in between get no score",
            f"a horizon of {format_duration(_rounded_up(needed, mission.step))} has no holes (forecast every + detect "
            "every + offset)",
        )


def _must_last(mission: Mission) -> timedelta:
    """How far a forecast must reach: until the next one is made and a detection sees it."""
    return mission.forecast.period + mission.detect.period + mission.offset


def _rounded_up(value: timedelta, step: timedelta) -> timedelta:
    return -(-value // step) * step


@check("forecast/horizon-long", "warning")
def horizon_long(subject: Subject) -> Iterator[Found]:
    """A forecast that overlaps more than one later one."""
    mission = subject.mission
    # Where cadences are close to the step, having no holes takes more than that.
    longest = max(2 * mission.forecast.period, _rounded_up(_must_last(mission), mission.step))
    if mission.horizon > longest:
        yield Found(
            ("forecast", "horizon"),
            f"the forecast reaches {format_duration(mission.horizon)}, and a new one comes every "
            f"{format_duration(mission.forecast.period)}: over {format_duration(longest)}, a plain query for it shows "
            "dots at resolutions finer than the step",
            f"take {format_duration(longest)}, or leave it out",
        )


@check("forecast/too-far-ahead", "error")
def too_far_ahead(subject: Subject) -> Iterator[Found]:
    """A forecast for times that VictoriaMetrics drops without a word."""
    mission = subject.mission
    ahead = subject.evidence.ahead if subject.evidence else mission.write is WriteMode.AHEAD
    if not ahead:
        return
    from anomaly_times.stores.writing import FARTHEST_AHEAD  # with an HTTP client, which takes a while to load

    if mission.horizon > FARTHEST_AHEAD:
        yield Found(
            ("forecast", "horizon" if mission.forecast.horizon else "every"),
            f"the forecast reaches {format_duration(mission.horizon)}; what is written ahead may reach "
            f"{format_duration(FARTHEST_AHEAD)}, for VictoriaMetrics drops what is later without a word",
            "forecast more often, or set `write: at_detection`",
        )


@check("forecast/season", "warning")
def season(subject: Subject) -> Iterator[Found]:
    """A season that is given and cannot be used."""
    mission = subject.mission
    for i, period in enumerate(mission.season or ()):
        if period < 2 * mission.step:
            yield Found(
                ("season", i),
                f"a season of {format_duration(period)} has fewer than two points at a step of "
                f"{format_duration(mission.step)}: it is not used",
            )
        elif mission.forecast.lookback < 2 * period:
            yield Found(
                ("forecast", "lookback"),
                f"a lookback of {format_duration(mission.forecast.lookback)} holds fewer than two seasons of "
                f"{format_duration(period)}: it is not used",
                f"look back {format_duration(2 * period)} or more, or leave the season out",
            )


@check("forecast/rebase-ahead", "error")
def rebase_ahead(subject: Subject) -> Iterator[Found]:
    """A change of level that is still to come: nothing after it can be learned from."""
    since = subject.mission.forecast.rebase
    if since is not None and since > subject.now + _CLOCKS_DIFFER:
        yield Found(
            ("forecast", "rebase"),
            f"the level is to be learned since {iso_utc(since)}, which has not come yet",
            "`at mission rebase NAME --since TIME` sets it, once the level has changed",
        )


@check("forecast/rebase-over", "info")
def rebase_over(subject: Subject) -> Iterator[Found]:
    """A change of level so long ago that all history is of the new one."""
    since = subject.mission.forecast.rebase
    if since is not None and since <= subject.mission.history_grid(subject.now).start:
        yield Found(
            ("forecast", "rebase"),
            f"all that a forecast reads, {format_duration(subject.mission.forecast.lookback)}, lies after "
            f"{iso_utc(since)}: it changes nothing any more",
            "delete it; `at mission rebase NAME --clear` does that",
        )


@check("detect/cadence", "warning")
def cadence(subject: Subject) -> Iterator[Found]:
    """Detections that come more often than points do."""
    mission = subject.mission
    if mission.detect.period < mission.step:
        yield Found(
            ("detect", "cron" if mission.detect.cron else "every"),
            f"a detection every {format_duration(mission.detect.period)} finds nothing new most of the time: there is "
            f"a point every {format_duration(mission.step)}",
            f"detect every {format_duration(mission.step)}",
        )


@check("mission/too-often", "error")
def too_often(subject: Subject) -> Iterator[Found]:
    """Forecasts or detections more than once a second, which no scheduler keeps up with."""
    mission = subject.mission
    for part, every in (("forecast", mission.forecast.every), ("detect", mission.detect.every)):
        if every < _SOONEST:
            yield Found(
                (part, "every"),
                f"every {format_duration(every)} is more often than any scheduler keeps up with",
                f"take {format_duration(_SOONEST)} or more; what comes late is caught up with",
            )


@check("labels/clash", "warning")
def label_clash(subject: Subject) -> Iterator[Found]:
    """A label of the mission that its series have already: theirs stays."""
    evidence = subject.evidence
    known = set(subject.query.by if subject.query else ())
    known |= {name for row in (evidence.labels if evidence else ()) for name, _ in row}
    for name in subject.mission.labels:
        if name in known:
            yield Found(
                ("labels", name),
                f"the series have a label {name!r} of their own: what is written keeps theirs, not the mission's",
                "call it something else",
            )


@check("model/invalid", "error")
def model(subject: Subject) -> Iterator[Found]:
    """A model that does not exist, or not with these parameters."""
    error = _model_error(subject.mission)
    if isinstance(error, ModelError):
        yield Found(("forecast", "model"), error.message, error.hint)


@check("model/not-installed", "warning")
def model_not_installed(subject: Subject) -> Iterator[Found]:
    """A model that lacks a package here; it may be there where missions run."""
    error = _model_error(subject.mission)
    if isinstance(error, MissingExtraError):
        yield Found(("forecast", "model"), error.message, f"where missions run: {error.hint}")


@check("model/slow", "warning")
def model_slow(subject: Subject) -> Iterator[Found]:
    """A model that takes minutes, by what it took when it was measured."""
    mission = subject.mission
    slow = long_forecast(mission, max(1, subject.evidence.count if subject.evidence else 1))
    if slow:
        spec = mission.forecast.model
        if spec.type == "auto":
            instead = "fewer slow candidates cost less"
        elif spec.params.get("seasonal") == "native":
            instead = "`seasonal: profile` costs far less"
        else:
            instead = "`auto` costs far less, or take a longer step"
        yield Found(
            ("forecast", "model"),
            f"{slow}, and one is due every {format_duration(mission.forecast.period)}",
            instead,
        )


def _model_error(mission: Mission) -> ModelError | MissingExtraError | None:
    spec = mission.forecast.model
    # The same few models a thousand times: equal text, equal model.
    return _build_error(spec.model_dump_json(), mission.season, mission.timezone)


@lru_cache(maxsize=1024)
def _build_error(
    spec: str, season: tuple[timedelta, ...] | None, timezone: str
) -> ModelError | MissingExtraError | None:
    try:
        build_model(ModelSpec.model_validate_json(spec), season=season, timezone=timezone)
    except (ModelError, MissingExtraError) as exc:
        return exc
    return None


@check("mission/source", "error")
def source(subject: Subject) -> Iterator[Found]:
    """A source that the settings do not know."""
    name = subject.mission.source
    if name and subject.sources is not None and name not in subject.sources:
        known = ", ".join(sorted(subject.sources)) or "none are set"
        yield Found(("source",), f"there is no source {name!r} (known: {known})", "see `sources:` in the settings")


@check("mission/size", "error")
def size(subject: Subject) -> Iterator[Found]:
    """A mission that is too large to be deployed."""
    mission = subject.mission
    try:
        to_value(DeployedMission(mission, "x", ("", ""), EPOCH))
    except MissionError as exc:
        field = max(("promql", "description"), key=lambda name: len(getattr(mission, name)))
        yield Found((field,), exc.message, exc.hint)


@check("mission/silence", "warning")
def silence(subject: Subject) -> Iterator[Found]:
    """A check that is silenced and does not exist, or cannot be silenced."""
    for i, each in enumerate(subject.mission.silence):
        if each.code in LOADING:
            yield Found(("silence", i), f"{each.code} cannot be silenced: such a mission cannot run")
        elif each.code not in CHECKS:
            yield Found(("silence", i), f"there is no check {each.code!r}", "docs/checks.md lists them")
