"""Alert rules of missions for vmalert and Prometheus: the alerts that a backtest counts, and who watches the watcher.

Every mission gets a group of three rules. `Anomaly` is its `alert:`, and means what `backtest.alerts` says of it, with
one evaluation of tolerance. `AnomalyNoScores` and `AnomalyForecastEnds` say that nobody watches, or soon nobody can;
they are joined with `at_mission_info`, so that missions which are paused or deleted fall silent, and those of a
platform that is dead do not. A last group is about the platform itself.

All of it is plain PromQL, which VictoriaMetrics reads too, and Go templates of which both know every function.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from anomaly_times.conventions import (
    BY_HAND,
    DURATION,
    ERRORS,
    FORECAST_END,
    LABEL_METRIC,
    LABEL_MISSION,
    LAST_SUCCESS,
    LOWER,
    MISSING_FORECAST,
    MISSION_INFO,
    POINTS_DROPPED,
    POINTS_IN_BAND,
    POINTS_JUDGED,
    POINTS_READ,
    PRED,
    REASON,
    SCORE,
    SCORED_POINTS,
    UPPER,
)
from anomaly_times.durations import format_duration
from anomaly_times.evidence import REASONS
from anomaly_times.mission import Mission

__all__ = ["Group", "Rule", "Severities", "mission_rules", "platform_rules", "render_rules", "rule_groups"]

ANOMALY, NO_SCORES, FORECAST_ENDS = "Anomaly", "AnomalyNoScores", "AnomalyForecastEnds"

_MINUTE = timedelta(minutes=1)
_HOUR = timedelta(hours=1)
_KNOWN = timedelta(days=2)
"""So long after the last word of it a mission is held to be there."""
_SILENT_CADENCES, _SILENT, _SILENT_MORE = 5, timedelta(minutes=10), timedelta(hours=6)
_RUN = timedelta(minutes=10)
"""That the run of a forecast may take before it counts as late."""
_LOOK_BACK, _LOOK_BACK_STEPS = timedelta(hours=6), 50
_MISSING_SHARE, _DROPPED_SHARE, _BUSY_SHARE, _LEAST_COVERAGE = 0.2, 0.05, 0.8, 0.9
_LEAST_JUDGED = 500
_MILLISECOND = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class Severities:
    """What the label `severity` says where a mission does not say it itself."""

    page: str = "page"
    ticket: str = "ticket"


@dataclass(frozen=True)
class Rule:
    """One alert rule; durations of zero are left out of the file."""

    alert: str
    expr: str
    for_: timedelta = timedelta(0)
    keep_firing_for: timedelta = timedelta(0)
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """Rules that are evaluated together, once an `interval`."""

    name: str
    interval: timedelta
    rules: tuple[Rule, ...]


def rule_groups(
    missions: Sequence[Mission], *, platform: bool = True, severities: Severities = Severities()
) -> tuple[Group, ...]:
    """The rules of these missions, a group each, in order of their names; then those of the platform, if wanted."""
    groups = [
        Group(f"at:{mission.name}", min(_MINUTE, mission.step), mission_rules(mission, severities))
        for mission in sorted(missions, key=lambda each: each.name)
    ]
    if platform:
        groups.append(Group("at", _MINUTE, platform_rules(missions, severities)))
    return tuple(groups)


def render_rules(groups: Sequence[Group], *, command: str, keep_firing: bool = True) -> str:
    """The rule file as YAML, the same text for the same missions.

    Args:
        groups: what it holds.
        command: what wrote it, for the comment on top.
        keep_firing: whether rules say `keep_firing_for`, which vmalert before 1.92 and Prometheus before 2.42 refuse.
    """
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    document = {"groups": [_group(group, keep_firing) for group in groups]}
    body = yaml.dump(document, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=10_000)
    first = " ".join(command.split())
    return f"# Written by `{first}`: change the missions, and write it anew.\n{body}"


def _group(group: Group, keep_firing: bool) -> dict[str, Any]:
    return {
        "name": group.name,
        "interval": format_duration(group.interval),
        "rules": [_rule(rule, keep_firing) for rule in group.rules],
    }


def _rule(rule: Rule, keep_firing: bool) -> dict[str, Any]:
    out: dict[str, Any] = {"alert": rule.alert, "expr": rule.expr}
    if rule.for_:
        out["for"] = format_duration(rule.for_)
    if rule.keep_firing_for and keep_firing:
        out["keep_firing_for"] = format_duration(rule.keep_firing_for)
    return out | {"labels": dict(rule.labels), "annotations": dict(rule.annotations)}


def mission_rules(mission: Mission, severities: Severities = Severities()) -> tuple[Rule, ...]:
    """What is said of one mission: that it is anomalous, that it has no scores, that its forecast runs out."""
    return (_anomaly(mission, severities), _no_scores(mission, severities), _forecast_ends(mission, severities))


def _anomaly(mission: Mission, severities: Severities) -> Rule:
    alert, by = mission.alert, LABEL_MISSION
    over = f"{_evidence(mission)} {_limit(mission)}"
    paused = f"max by ({by}) (last_over_time({_of(MISSION_INFO, mission)}[{_known(mission)}])) == 0"
    labels = _labels(mission, severities.page) | alert.labels
    expr = _exported(over, mission, labels) if alert.per_series else f"count by ({by}) (\n  {_indented(over)}\n)"
    return Rule(
        ANOMALY,
        f"{expr}\nunless on ({by}) ({paused})",
        alert.lasting,
        alert.keep_firing_for,
        labels,
        _annotations(mission, labels),
    )


def _evidence(mission: Mission) -> str:
    """The newest score of each series; with `points`, how many of the points up to it are over."""
    score, alert = _of(SCORE, mission), mission.alert
    if not alert.points:
        return f"last_over_time({score}[{format_duration(mission.score_stands)}])"

    def before(span: timedelta) -> str:
        # Prometheus 2 counts both ends of a range, and points lie exactly there.
        return format_duration(span - _MILLISECOND)

    step, (_, newest) = format_duration(mission.step), alert.least_of_newest
    at = f"last_over_time({score}[{before(mission.step)}])"
    window = before(newest * mission.step)
    return (
        "last_over_time((\n"
        f"  sum_over_time(({at} > bool {_number(alert.above)})[{window}:{step}])\n"
        f"  and {at}\n"
        f")[{before(mission.score_stands)}:{step}])"
    )


def _exported(expr: str, mission: Mission, rule_labels: Mapping[str, str]) -> str:
    """The same series, and what labels of the alert replace kept as `exported_…`.

    Else alerts of series that differ in nothing else are one, and Prometheus gives up the whole rule.
    """
    for name in _replaced(mission, rule_labels):
        expr = f'label_replace(\n  {_indented(expr)},\n  "exported_{name}", "$1", "{name}", "(.+)"\n)'
    return expr


def _replaced(mission: Mission, rule_labels: Mapping[str, str]) -> list[str]:
    """The labels of an alert that may be others than those of its series."""
    same = {LABEL_MISSION, *(name for name, value in mission.labels.items() if rule_labels[name] == _literal(value))}
    return sorted(rule_labels.keys() - same)


def _limit(mission: Mission) -> str:
    alert = mission.alert
    return f">= {alert.least_of_newest[0]}" if alert.points else f"> {_number(alert.above)}"


def _no_scores(mission: Mission, severities: Severities) -> Rule:
    cadence = max(mission.step, mission.detect.period)
    # With a cadence of a day, or a cron that rests over the weekend, five of them would be far too late.
    window = max(min(_SILENT_CADENCES * cadence, cadence + _SILENT_MORE), _SILENT) + mission.offset + mission.step
    scored = f"last_over_time({_of(SCORE, mission)}[{format_duration(window)}])"
    expr = f"({_there(mission)})\nunless on ({LABEL_MISSION}) {scored}"
    return Rule(
        NO_SCORES,
        expr,
        # That of a new mission come with its first detection.
        max(cadence, 5 * _MINUTE),
        labels=_labels(mission, severities.ticket),
        annotations={
            "summary": f"{mission.name}: no score for {format_duration(window)}",
            "action": f"nobody watches it: `at status` says whether passes run and why they fail, `at mission show "
            f"{mission.name}` whether it is deployed; if they run, its query answers nothing any more",
            "query": _literal(mission.promql),
        },
    )


def _forecast_ends(mission: Mission, severities: Severities) -> Rule:
    spare = mission.horizon - mission.forecast.period
    least = min(spare / 2, spare - mission.offset - mission.step - _RUN)
    end = f"max by ({LABEL_MISSION}) (last_over_time({_of(FORECAST_END, mission)}[{_known(mission)}]))"
    expr = f"({end} - time() < {_number(least.total_seconds())})\nand on ({LABEL_MISSION}) ({_there(mission)})"
    return Rule(
        FORECAST_ENDS,
        expr,
        5 * _MINUTE,
        labels=_labels(mission, severities.ticket),
        annotations={
            "summary": f"{mission.name}: its forecast ends in {{{{ $value | humanizeDuration }}}}",
            "action": f"without a forecast there are no scores: `at status` says why the last ones failed, `at mission "
            f"run {mission.name}` makes one now",
            "query": _literal(mission.promql),
        },
    )


def _there(mission: Mission) -> str:
    """PromQL that answers where a mission was there of late, and was not paused or deleted since."""
    return f"max by ({LABEL_MISSION}) (last_over_time({_of(MISSION_INFO, mission)}[{_known(mission)}])) == 1"


def _known(mission: Mission) -> str:
    return format_duration(max(_KNOWN, 2 * mission.forecast.period, 2 * mission.detect.period, mission.horizon))


def _labels(mission: Mission, severity: str) -> dict[str, str]:
    own = {name: _literal(value) for name, value in mission.labels.items()}
    return {LABEL_MISSION: mission.name} | own | {"severity": severity}


# --- what a page says: templates of Go, which ask the store when an alert fires ---------------------------------------

_SHORT = '{{ printf "%.4g" .Value }}'
_COLLECT = (
    '{{ $worst = printf "%s%s=%q," $worst $name $value }}'
    '{{ if ne $name "mission" }}{{ $shown = printf "%s %s=%s" $shown $name $value }}{{ end }}'
)
_ISO = '{{ humanizeTimestamp $at | reReplaceAll "^(\\\\S+) (\\\\S+) .*" "${1}T${2}Z" }}'


def _annotations(mission: Mission, rule_labels: Mapping[str, str]) -> dict[str, str]:
    told = {
        "summary": f"{mission.name}: {_counted(mission)}",
        "description": _literal(mission.description),
        "details": _details(mission, rule_labels),
        "query": _literal(mission.promql),
    }
    return {name: text for name, text in told.items() if text}


def _details(mission: Mission, rule_labels: Mapping[str, str]) -> str:
    """What a person is told of the worst series of a mission, or of the alert's own, as a template that asks the store.

    What its score is of and how high it is; its value, forecast and bounds at the time of that score; when it was last
    usual; and the command that says more. A line break and `{{-` are nothing.
    """
    step, window = format_duration(mission.step), format_duration(mission.step - _MILLISECOND)
    stands, above = format_duration(mission.score_stands), _number(mission.alert.above)
    back = format_duration(max(_LOOK_BACK, _LOOK_BACK_STEPS * mission.step))

    def of_worst(metric: str, span: str, at: str = "") -> str:
        return f"last_over_time({metric}{{%[1]s}}[{span}]{at})"

    then = " @ %[2]f"
    newest = f"max_over_time((0 * {of_worst(SCORE, window)} + time())[{stands}:{step}])"
    usual = f"max_over_time((0 * ({of_worst(SCORE, window)} <= {above}) + time())[{back}:{step}])"
    # A line break, for the query may end with a comment; a subquery, for only that can be asked for another time.
    asked = mission.promql.replace("%", "%%")
    added = ", ".join(sorted({LABEL_MISSION, LABEL_METRIC, *mission.labels}))
    value = f"last_over_time(({asked}\n)[{window}:{step}]{then}) and ignoring ({added}) {of_worst(SCORE, stands)}"
    of_what = f'{{{{ index (args {" ".join(map(_go, REASONS))}) (printf "arg%.0f" .Value) }}}}, '
    unknown = f'{{{{ $at := 0.0 }}}}{{{{ $usual := "longer than {back} ago" }}}}'
    line_break = '{{- "\\n" }}'
    lines = [
        '{{- $worst := "" }}{{ $shown := "" }}' + unknown,
        _collected(mission, rule_labels),
        _each(newest, "{{ $at = .Value }}"),
        _each(usual, "{{ $usual = humanizeTimestamp .Value }}"),
        _each(of_worst(REASON, stands), of_what),
        _each(of_worst(SCORE, stands), f"score {_SHORT}"),
        "{{- if $shown }} in{{ $shown }}{{ end }}",
        '{{- if $at }}{{ $value := "no value" }}',
        _each(value, '{{ $value = printf "%.4g" .Value }}'),
        line_break + "{{ $value }}",
        _each(of_worst(PRED, window, then), f", expected {_SHORT}"),
        _each(of_worst(LOWER, window, then), f", bounds {_SHORT}"),
        _each(of_worst(UPPER, window, then), f" to {_SHORT}"),
        "{{- end }}",
        line_break + "last usual {{ $usual }}",
        line_break + f"at explain --mission {mission.name} --at {{{{ if $at }}}}{_ISO}{{{{ else }}}}now{{{{ end }}}}",
    ]
    return "\n".join(lines)


def _counted(mission: Mission) -> str:
    alert = mission.alert
    if not alert.per_series:
        return "{{ $value }} series anomalous"
    if alert.points:
        return f"{{{{ $value }}}} of {alert.least_of_newest[1]} points anomalous"
    return 'score {{ printf "%.4g" $value }}'


def _collected(mission: Mission, rule_labels: Mapping[str, str]) -> str:
    """A part that leaves the matchers of the worst series in `$worst`, and its labels for people in `$shown`."""
    if not mission.alert.per_series:
        query = f"topk(1, last_over_time({_of(SCORE, mission)}[{format_duration(mission.score_stands)}]))"
        each = '{{ range $name, $value := .Labels }}{{ if ne $name "__name__" }}' + _COLLECT + "{{ end }}{{ end }}"
        return f"{{{{- range query {_go(query)} }}}}{each}{{{{ end }}}}"
    replaced = _replaced(mission, rule_labels)
    # vmalert's `$labels` are those of the alert, and not only those of the series.
    hidden = "|".join(["__name__", "alertname", "alertgroup", *replaced])
    back = f'{{{{ $name = reReplaceAll "^exported_({"|".join(replaced)})$" "$1" $name }}}}' if replaced else ""
    each = f'{{{{ if not (match "^({hidden})$" $name) }}}}{back}{_COLLECT}{{{{ end }}}}'
    return f"{{{{- range $name, $value := $labels }}}}{each}{{{{ end }}}}"


def _each(query: str, body: str) -> str:
    """`body` for each answer of a query in which `%[1]s` are the matchers of the worst series, `%[2]f` is its time."""
    arguments = "$worst $at" if "%[2]f" in query else "$worst"
    return f"{{{{- range query (printf {_go(query)} {arguments}) }}}}{body}{{{{ end }}}}"


# --- the platform ----------------------------------------------------------------------------------------------------


def platform_rules(missions: Sequence[Mission], severities: Severities = Severities()) -> tuple[Rule, ...]:
    """What is said of the passes of these missions, whoever runs them."""
    return tuple(_platform(missions, severities))


def _platform(missions: Sequence[Mission], severities: Severities) -> Iterator[Rule]:
    detections = [mission.detect.period for mission in missions]
    forecasts = [mission.forecast.period for mission in missions]
    ticket = {"severity": severities.ticket}
    known = format_duration(max(_KNOWN, 2 * max(detections), 2 * max(forecasts)))
    quiet = format_duration(max(15 * _MINUTE, 5 * min(detections)))
    yield Rule(
        "AtNothingRuns",
        f"absent_over_time({LAST_SUCCESS}[{quiet}])\nunless on () (max(last_over_time({MISSION_INFO}[{known}])) == 0)",
        labels={"severity": severities.page},
        annotations={
            "summary": f"no pass has succeeded for {quiet}: nothing is watched",
            "action": "see whether Prefect and its workers, or `at run`, are up, and whether the source takes writes: "
            "`at status`, `at doctor`",
        },
    )
    # One for each cadence: in the span of a fast one, slower missions have less than two passes.
    spans = [
        *(("detect", span) for span in sorted({max(30 * _MINUTE, 5 * every) for every in detections})),
        *(("forecast", span) for span in sorted({max(_HOUR, 3 * every) for every in forecasts})),
    ]
    failing = [
        f'(avg_over_time({ERRORS}{{kind="{kind}"}}[{format_duration(span)}]) > 0.5\n'
        f'  and sum_over_time({ERRORS}{{kind="{kind}"}}[{format_duration(span)}]) >= 2)'
        for kind, span in spans
    ]
    yield Rule(
        "AtMissionFails",
        "\nor ".join(failing),
        labels=ticket,
        annotations={
            "summary": "{{ $labels.mission }}: {{ $labels.kind }} fails again and again, "
            "{{ $value | humanizePercentage }} of its passes",
            "action": "`at status` shows the last error; `at mission validate` asks the source",
        },
    )
    hour = format_duration(max(_HOUR, 2 * max(detections)))
    missing = f"sum by ({LABEL_MISSION}) (sum_over_time({MISSING_FORECAST}[{hour}]))"
    scored = f"sum by ({LABEL_MISSION}) (sum_over_time({SCORED_POINTS}[{hour}]))"
    yield Rule(
        "AtForecastsMissing",
        f"{missing}\n/ ({missing} + {scored}) > {_MISSING_SHARE}",
        15 * _MINUTE,
        labels=ticket,
        annotations={
            "summary": "{{ $labels.mission }}: {{ $value | humanizePercentage }} of its points have no forecast",
            "action": "series that are new wait for the next forecast; if these are not new, forecasts are late, or "
            "labels change all the time: `at status`",
        },
    )
    by = "pack, kind, source"
    yield Rule(
        "AtPointsDropped",
        f"sum by ({by}) (sum_over_time({POINTS_DROPPED}[{hour}]))\n"
        f"/ sum by ({by}) (sum_over_time({POINTS_READ}[{hour}])) > {_DROPPED_SHARE}",
        15 * _MINUTE,
        labels=ticket,
        annotations={
            "summary": "{{ $labels.pack }}: {{ $value | humanizePercentage }} of its points come to nothing",
            "action": "the log of its runs says why; `at doctor` says whether the source takes what is written",
        },
    )
    busy = []
    for kind, longest in (("detect", max(detections)), ("forecast", max(forecasts))):
        span = max(_HOUR, 2 * longest)
        passes = f'{DURATION}{{kind="{kind}",stage="total",pack!="{BY_HAND}"}}[{format_duration(span)}]'
        seconds = _number(_BUSY_SHARE * span.total_seconds())
        busy.append(f"sum by (pack, kind) (sum_over_time({passes})) > {seconds}")
    yield Rule(
        "AtPassesSlow",
        "\nor ".join(busy),
        15 * _MINUTE,
        labels=ticket,
        annotations={
            "summary": "{{ $labels.pack }}: {{ $labels.kind }} runs nearly all the time, and soon will be late",
            "action": "the stages of at_pass_duration_seconds say whether it reads, computes or writes for so long; "
            "longer steps or cadences, a cheaper model, or more workers",
        },
    )
    narrow = sorted(each.name for each in missions if (each.forecast.level or 100) < 100 * _LEAST_COVERAGE + 5)
    but = f'{{{LABEL_MISSION}!~"{"|".join(narrow)}"}}' if narrow else ""
    yield Rule(
        "AtForecastsOff",
        f"sum by ({LABEL_MISSION}) (sum_over_time({POINTS_IN_BAND}{but}[1d]))\n"
        f"/ (sum by ({LABEL_MISSION}) (sum_over_time({POINTS_JUDGED}{but}[1d])) > {_LEAST_JUDGED}) < {_LEAST_COVERAGE}",
        _HOUR,
        labels=ticket,
        annotations={
            "summary": "{{ $labels.mission }}: only {{ $value | humanizePercentage }} of a day's points in bounds",
            "action": "something has changed for good (`at mission rebase {{ $labels.mission }} --since TIME`), or the "
            "model does not fit: `at backtest --compare`",
        },
    )


# --- spelling --------------------------------------------------------------------------------------------------------


def _of(metric: str, mission: Mission) -> str:
    return f'{metric}{{{LABEL_MISSION}="{mission.name}"}}'


def _number(value: float) -> str:
    """As short as exact: `1`, `2.5`."""
    return str(int(value)) if value == int(value) else repr(value)


def _indented(text: str) -> str:
    return text.replace("\n", "\n  ")


def _literal(text: str) -> str:
    """Text that a template shows as it is."""
    return text.replace("{{", '{{ "{{" }}')


def _go(text: str) -> str:
    """A string literal of Go; JSON's escapes are Go's too."""
    return json.dumps(text, ensure_ascii=False)
