"""Three Grafana pages over what is stored: all missions, one mission, and the platform.

The same missions give the same files. Everything comes from the data source that scores are in; values of a mission
are those of its own query, which no series holds, so they are drawn for missions that are given here.
"""

from __future__ import annotations

from collections.abc import Sequence

from grafana_foundation_sdk.builders import common
from grafana_foundation_sdk.models import common as styles
from grafana_foundation_sdk.models import dashboard as parts

from anomaly_times.conventions import (
    DURATION,
    ERRORS,
    EVIDENCE,
    FORECAST_ABS_ERROR,
    FORECAST_END,
    INCIDENT,
    LABEL_METRIC,
    LABEL_MISSION,
    LAST_SUCCESS,
    LIMIT,
    LOWER,
    MISSING_FORECAST,
    MISSION_INFO,
    NAIVE_ABS_ERROR,
    POINTS_DROPPED,
    POINTS_IN_BAND,
    POINTS_JUDGED,
    POINTS_READ,
    POINTS_WRITTEN,
    PRED,
    REASON,
    SCORE,
    SCORED_POINTS,
    SERIES,
    SERIES_ANOMALOUS,
    UPPER,
    USUAL,
)
from anomaly_times.evidence import REASONS
from anomaly_times.mission import Mission
from anomaly_times.outputs import grafana as ui
from anomaly_times.outputs.grafana import Column, query, steps

__all__ = ["MISSION_UID", "OVERVIEW_UID", "PLATFORM_UID", "render_dashboards"]

OVERVIEW_UID = "anomaly-times-overview"
MISSION_UID = "anomaly-times-mission"
PLATFORM_UID = "anomaly-times-platform"

# The newest figure of a pass may be as old as the longest cadence, twice over where one was missed.
_WINDOWS = ("10m", "30m", "3h", "1d", "2d")
_WINDOW = "3h"
# A forecast's limits are written once, and hold for its horizon: 47 h at most where that is written ahead.
_LIMITS_HOLD = "2d"
_REASON_COLOURS = ("red", "orange", "yellow", "purple", "blue", "dark-red", "dark-orange", "text")

_RUNNING = f'(max by (mission) (last_over_time({MISSION_INFO}{{project=~"$project"}}[$window])) == 1)'
_FAILED = f"sum by (mission) (sum_over_time({ERRORS}[$__range])) and on (mission) {_RUNNING}"
_OURS = '{mission="${mission:text}"}'
# Where a mission has no scores yet no series is chosen, so its name stands first.
_SERIES = 'mission="${mission:text}",${series:raw}'
_NOTHING = "vector(1) < 0"

_BAD = steps((1, "red"))
_LATE = steps((2 * 3600, "orange"), (6 * 3600, "red"))
_ENDING = steps((0, "orange"), (1800, "green"), base="red")
_SCORE_COLOURS = steps((1, "red"))


def render_dashboards(missions: Sequence[Mission] = (), *, datasource: str = "") -> dict[str, str]:
    """The JSON of each page by its file name.

    Args:
        missions: whose values the page of a mission draws. Without any it offers what is stored, and takes the query
            of the values by hand.
        datasource: uid or name of the data source to ask at first; Grafana's default one if empty.
    """
    pages = {
        "overview.json": _overview(datasource),
        "mission.json": _mission(sorted(missions, key=lambda mission: mission.name), datasource),
        "platform.json": _platform(datasource),
    }
    return {name: ui.to_json(built) for name, built in pages.items()}


def _window() -> ui.AnyVariable:
    about = "Figures of passes count so long: more than twice the longest cadence of a mission."
    return ui.choice("window", {text: text for text in _WINDOWS}, label="Newest within", chosen=_WINDOW, about=about)


def _project() -> ui.AnyVariable:
    return ui.from_query("project", f"label_values({MISSION_INFO}, project)", everything=True)


def _newest(metric: str, by: str = LABEL_MISSION, window: str = "$window") -> str:
    """The newest figure of each of `by`, of missions that run."""
    return f"max by ({by}) (last_over_time({metric}[{window}])) and on (mission) {_RUNNING}"


def _age(kind: str) -> str:
    """Seconds since a pass of a kind succeeded, by mission."""
    succeeded = f'max by (mission) (last_over_time({LAST_SUCCESS}{{kind="{kind}"}}[2d]))'
    return f"time() - {succeeded} and on (mission) {_RUNNING}"


_TO_MISSION = (
    "the mission's page",
    f"/d/{MISSION_UID}?var-mission=${{__value.raw}}&var-datasource=${{datasource}}&${{__url_time_range}}",
)


def _overview(datasource: str) -> ui.Page:
    built = ui.new_page(
        "Anomaly Times / Overview",
        OVERVIEW_UID,
        "Which missions are anomalous, and whether all of them are watched.",
        [ui.datasource(datasource), _project(), _window()],
    )
    firing = f'ALERTS{{alertstate="firing",mission!=""}} and on (mission) {_RUNNING}'
    for tile in (
        ui.tiles("Missions", "That run.", f"count({_RUNNING})", colours=steps()),
        ui.tiles("Series anomalous", "Now.", f"sum({_newest(SERIES_ANOMALOUS)})", colours=_BAD),
        ui.tiles(
            "Alerts firing",
            "Where the rule engine writes ALERTS: Prometheus does, vmalert with -remoteWrite.url.",
            f"count({firing})",
            colours=_BAD,
        ),
        ui.tiles(
            "Failed passes",
            "In the time range, by mission and kind.",
            f"sum(sum_over_time({ERRORS}[$__range]) and on (mission) {_RUNNING})",
            colours=_BAD,
        ),
        ui.tiles(
            "Points without a forecast",
            "Of the newest passes.",
            f"sum({_newest(MISSING_FORECAST)})",
            colours=steps((1, "orange")),
        ),
        ui.tiles("Longest without scores", "Since a detection succeeded.", f"max({_age('detect')})", unit="s",
                 colours=_LATE),
    ):  # fmt: skip
        built = built.with_panel(tile)
    missions = [
        Column("Worst score", _newest(SCORE), colours=_SCORE_COLOURS),
        Column("Series anomalous", _newest(SERIES_ANOMALOUS), colours=_BAD),
        Column("Series", _newest(SERIES)),
        Column("Without a forecast", _newest(MISSING_FORECAST), colours=steps((1, "orange"))),
        Column("Scored ago", _age("detect"), unit="s", colours=_LATE),
        Column("Forecast ago", _age("forecast"), unit="s", colours=_LATE),
        Column("Failed passes", _FAILED, colours=_BAD),
    ]
    return (
        built.with_panel(
            ui.worst_first(
                "Missions by worst score",
                "The newest score of each series within the window; the name leads to the mission's page.",
                missions,
                by="Worst score",
                links={LABEL_MISSION: _TO_MISSION},
            )
        )
        .with_panel(
            ui.bars(
                "Series anomalous",
                "By mission, at each detection.",
                query(
                    f"max by (mission) (max_over_time({SERIES_ANOMALOUS}[$__interval])) > 0 "
                    f"and on (mission) {_RUNNING}",
                    "{{mission}}",
                    interval="1m",
                ),
            )
        )
        .with_panel(
            ui.bars(
                "Alerts firing",
                "Where the rule engine writes ALERTS: Prometheus does, vmalert with -remoteWrite.url.",
                query(f"count by (alertname, mission) ({firing})", "{{alertname}} {{mission}}", interval="1m"),
            )
        )
        .with_panel(
            ui.lines(
                "Lag",
                "The longest time since a pass succeeded for a mission.",
                query(f"max({_age('detect')})", "detection", ref="A", interval="1m"),
                query(f"max({_age('forecast')})", "forecast", ref="B", interval="1m"),
                width=8,
            ).unit("s")
        )
        .with_panel(_failures(8))
        .with_panel(
            ui.bars(
                "Points without a forecast",
                "They have no score.",
                query(
                    f"sum by (mission) (sum_over_time({MISSING_FORECAST}[$__interval])) > 0",
                    "{{mission}}",
                    interval="1m",
                ),
                width=8,
            )
        )
    )


def _failures(width: int) -> ui.Panel:
    failed = query(
        f"sum by (mission, kind) (sum_over_time({ERRORS}[$__interval])) > 0", "{{kind}} {{mission}}", interval="1m"
    )
    return ui.bars("Failed passes", "By mission and kind.", failed, width=width)


def _mission(missions: Sequence[Mission], datasource: str) -> ui.Page:
    if missions:
        chosen = [ui.choice("mission", _queries(missions), label="Mission")]
        values = "${mission:raw}"
    else:
        stored = f"label_values({MISSION_INFO}, mission)"
        about = "The query of the mission, whose values are drawn beside the forecast."
        chosen = [
            ui.from_query("mission", stored),
            ui.text_box("query", _NOTHING, label="Query of the values", about=about),
        ]
        values = "${query:raw}"
    worst = f"query_result(sort_desc(topk(200, max_over_time({SCORE}{_OURS}[$__range]))))"
    # Of the label sets that a mission had in the time range the newest counts, and a minute where there is none.
    newest = f"topk(1, max_over_time(timestamp({MISSION_INFO}{_OURS})[$__range:5m]))"
    step = f'query_result({newest} or on() label_replace(vector(1), "step", "1m", "", ""))'
    built = ui.new_page(
        "Anomaly Times / Mission",
        MISSION_UID,
        "One mission: values, forecast and bounds of a series, what its score is of, and how good forecasts are.",
        [
            ui.datasource(datasource),
            *chosen,
            ui.from_query("series", worst, label="Series, worst first", regex=r"/\{(.*)\}/"),
            ui.from_query("step", step, regex='/step="([^"]+)"/', hidden=True),
        ],
    ).annotation(ui.shaded("Incidents", f"last_over_time({INCIDENT}{{{_SERIES}}}[$step]) > 1", "$step"))
    for panel in (*_state(), _value(values, _added_labels(missions)), _score(), _reason(), _channels()):
        built = built.with_panel(panel)
    built = built.with_row(ui.section("Incidents")).with_panel(_incidents_over_time()).with_panel(_incidents())
    built = built.with_row(ui.section("Quality of forecasts, and passes"))
    for panel in (*_quality(), *_passes()):
        built = built.with_panel(panel)
    return built


def _queries(missions: Sequence[Mission]) -> dict[str, str]:
    """The query of each mission by its name, no two alike: Grafana finds what is chosen by its value first."""
    queries: dict[str, str] = {}
    for mission in missions:
        promql = ui.one_line(mission.promql)
        while promql in queries.values():
            promql = f"({promql})"
        queries[mission.name] = promql
    return queries


def _added_labels(missions: Sequence[Mission]) -> list[str]:
    """The labels that results have and values have not."""
    return sorted({LABEL_MISSION, LABEL_METRIC, *(name for mission in missions for name in mission.labels)})


def _state() -> list[ui.Panel]:
    def newest(metric: str) -> str:
        return f"max(last_over_time({metric}{_OURS}[1d]))"

    def age(kind: str) -> str:
        return f'time() - max(last_over_time({LAST_SUCCESS}{{mission="${{mission:text}}",kind="{kind}"}}[2d]))'

    return [
        ui.tiles("Series anomalous", "At the newest detection.", newest(SERIES_ANOMALOUS), colours=_BAD),
        ui.tiles("Series", "With a value at the newest detection.", newest(SERIES), colours=steps()),
        ui.tiles("Scored", "So long ago.", age("detect"), unit="s", colours=_LATE, none="never"),
        ui.tiles("Forecast", "So long ago.", age("forecast"), unit="s", colours=_LATE, none="never"),
        ui.tiles("Forecast ends in", "Then there are no scores.", f"{newest(FORECAST_END)} - time()", unit="s",
                 colours=_ENDING, none="none"),
        ui.tiles("Failed passes", "In the time range.", f"sum(sum_over_time({ERRORS}{_OURS}[$__range]))", colours=_BAD),
    ]  # fmt: skip


def _value(values: str, added: Sequence[str]) -> ui.Panel:
    """Value, forecast and bounds of a series.

    A forecast for a time is stored up to some milliseconds before it, the freshest last, so the newest sample of the
    step that ends there is the one that counts.
    """

    def freshest(metric: str) -> str:
        return f"last_over_time({metric}{{{_SERIES}}}[$__interval])"

    # No value knows the labels that were added to results: the series of a query that is meant has all the others.
    value = f"({values}) and ignoring ({', '.join(added)}) last_over_time({PRED}{{{_SERIES}}}[{_LIMITS_HOLD}])"
    panel = ui.lines(
        "Value, forecast and bounds",
        "Values of one series, and what was forecast for them. Incidents are shaded.",
        query(freshest(UPPER), "upper", ref="A", interval="$step"),
        query(freshest(LOWER), "lower", ref="B", interval="$step"),
        query(freshest(PRED), "forecast", ref="C", interval="$step"),
        query(value, "value", ref="D", interval="$step"),
        width=24,
        height=11,
    )
    band = [_set("custom.lineWidth", 0), _set("color", {"mode": "fixed", "fixedColor": "blue"})]
    return (
        panel.override_by_name("upper", [*band, _set("custom.fillBelowTo", "lower"), _set("custom.fillOpacity", 20)])
        .override_by_name("lower", band)
        .override_by_name("forecast", [_set("color", {"mode": "fixed", "fixedColor": "blue"})])
        .override_by_name("value", [_set("color", {"mode": "fixed", "fixedColor": "green"}),
                                    _set("custom.lineWidth", 2)])
    )  # fmt: skip


def _set(what: str, value: object) -> parts.DynamicConfigValue:
    return parts.DynamicConfigValue(what, value)


def _score() -> ui.Panel:
    score = query(f"max_over_time({SCORE}{{{_SERIES}}}[$__interval])", "score", interval="$step")
    panel = ui.lines("Score", "Over 1 is anomalous; over that, the scale is logarithmic.", score, width=24, height=6)
    # Scores reach 1,000, and the question is whether they are over 1.
    scale = common.ScaleDistributionConfig().type(styles.ScaleDistribution.SYMLOG).log(10).linear_threshold(1)
    line = common.GraphThresholdsStyleConfig().mode(styles.GraphThresholdsStyleMode.LINE)
    return panel.scale_distribution(scale).thresholds(_SCORE_COLOURS).thresholds_style(line).min(0).axis_soft_max(2)


def _reason() -> ui.Panel:
    """In words what each score over 1 is of."""
    over = f"max_over_time({SCORE}{{{_SERIES}}}[$__interval]) > 1"
    reason = query(f"last_over_time({REASON}{{{_SERIES}}}[$__interval]) and {over}", "reason", interval="$step")
    return ui.timeline(
        "What the score is of", "Where it is over 1.", reason, ui.words(REASONS, _REASON_COLOURS), height=4
    )


def _channels() -> ui.Panel:
    """Each kind of evidence on its way from usual, 0, to its limit, 1."""

    def evidence(channel: str) -> str:
        return f'last_over_time({EVIDENCE}{{channel="{channel}",{_SERIES}}}[$__interval])'

    def limit(channel: str, metric: str = LIMIT) -> str:
        return f'last_over_time({metric}{{channel="{channel}",{_SERIES}}}[{_LIMITS_HOLD}])'

    usual = limit("sustained", USUAL)
    panel = ui.lines(
        "Evidence over time",
        "Of each kind, on its way from usual, 0, to its limit, 1; before gates such as `min_deviation`.",
        query(f"({evidence('sustained')} - {usual}) / ({limit('sustained')} - {usual})", "sustained",
              ref="A", interval="$step"),
        query(f"({evidence('roughness')} - 1) / ({limit('roughness')} - 1)", "roughness", ref="B", interval="$step"),
        query(f"abs({evidence('drift')}) / {limit('drift')}", "drift", ref="C", interval="$step"),
        query(f"{evidence('flat')} / {limit('flat')}", "flat", ref="D", interval="$step"),
        width=24,
        height=7,
    )  # fmt: skip
    line = common.GraphThresholdsStyleConfig().mode(styles.GraphThresholdsStyleMode.LINE)
    return panel.thresholds(_SCORE_COLOURS).thresholds_style(line).axis_soft_min(0).axis_soft_max(1.2)


def _incidents_over_time() -> ui.Panel:
    going_on = f"max without (mission) (max_over_time({INCIDENT}{_OURS}[$__interval])) > bool 1"
    mapping = ui.words(("over", "incident"), ("transparent", "red"))
    asked = query(going_on, interval="$step")
    return ui.timeline("Series in an incident", "Until nothing was odd for hours.", asked, mapping, height=8)


def _incidents() -> ui.Panel:
    """The series that had an incident in the time range, with what is known of it."""
    lately = f"max without (mission) (max_over_time({INCIDENT}{_OURS}[$__range]) > 1)"

    def had(expr: str) -> str:
        return f"max without (mission) ({expr}) and {lately}"

    over = f"({SCORE}{_OURS} > 1)[$__range:$step]"
    return ui.worst_first(
        "Series that had an incident",
        "In the time range.",
        [
            Column("Peak score", had(f"max_over_time({SCORE}{_OURS}[$__range])"), colours=_SCORE_COLOURS),
            Column("First over 1", had(f"min_over_time(timestamp{over})*1000"), unit="dateTimeAsIso"),
            Column("Last over 1", had(f"max_over_time(timestamp{over})*1000"), unit="dateTimeAsIso"),
            Column("Points over 1", had(f"count_over_time({over})")),
            Column(
                "Last of",
                had(f"last_over_time({REASON}{_OURS}[$__range])"),
                mapping=ui.words(REASONS, _REASON_COLOURS),
            ),
        ],
        by="Peak score",
    )


def _quality() -> list[ui.Panel]:
    def ratio(part: str, whole: str, window: str) -> str:
        return f"sum(sum_over_time({part}{_OURS}[{window}])) / sum(sum_over_time({whole}{_OURS}[{window}]))"

    coverage, mase = (POINTS_IN_BAND, POINTS_JUDGED), (FORECAST_ABS_ERROR, NAIVE_ABS_ERROR)
    return [
        ui.lines(
            "Points inside their bounds",
            "Of one day before; with an alert budget nearly all are.",
            query(ratio(*coverage, "1d"), "inside", interval="5m"),
        ).unit("percentunit").axis_soft_max(1),
        ui.lines(
            "Error of forecasts, against the value a season before",
            "MASE of one day before: under 1 the forecast is better than that.",
            query(ratio(*mase, "1d"), "MASE", interval="5m"),
        ).axis_soft_min(0).axis_soft_max(1),
    ]  # fmt: skip


def _passes() -> list[ui.Panel]:
    def at_each(metric: str) -> str:
        return f"sum(sum_over_time({metric}{_OURS}[$__interval]))"

    return [
        ui.bars(
            "Points of detections",
            "Those that got a score, and those that no forecast was for.",
            query(at_each(SCORED_POINTS), "scored", ref="A", interval="$step"),
            query(at_each(MISSING_FORECAST), "without a forecast", ref="B", interval="$step"),
        ),
        ui.bars(
            "Failed passes",
            "By kind.",
            query(f"sum by (kind) (sum_over_time({ERRORS}{_OURS}[$__interval])) > 0", "{{kind}}", interval="$step"),
        ),
    ]


def _platform(datasource: str) -> ui.Page:
    built = ui.new_page(
        "Anomaly Times / Platform",
        PLATFORM_UID,
        "Whether passes run, how long they take, and what they read and write.",
        [ui.datasource(datasource), _project(), _window()],
    )
    runs = f'{DURATION}{{stage="total"}}'
    # Only a pass that succeeds says when.
    unscored = f'{_RUNNING} unless on (mission) last_over_time({LAST_SUCCESS}{{kind="detect"}}[$window])'
    for tile in (
        ui.tiles("Missions", "That run.", f"count({_RUNNING})", colours=steps()),
        ui.tiles("Passes", "In the time range.", f"sum(count_over_time({runs}[$__range]))", colours=steps()),
        ui.tiles("Slowest pass", "In the time range.", f"max(max_over_time({runs}[$__range]))", unit="s",
                 colours=steps((60, "orange"))),
        ui.tiles("Failed passes", "In the time range, by mission and kind.",
                 f"sum(sum_over_time({ERRORS}[$__range]))", colours=_BAD),
        ui.tiles("Not scored", "Missions that run, and have no success within the window.", f"count({unscored})",
                 colours=_BAD),
        ui.tiles("Shortest forecast left", "Of missions that run.", f"min({_newest(FORECAST_END)}) - time()", unit="s",
                 colours=_ENDING),
    ):  # fmt: skip
        built = built.with_panel(tile)

    def mean_seconds(kind: str) -> str:
        stages = f'{DURATION}{{kind="{kind}",stage!="total"}}[$__interval]'
        return f"sum by (stage) (sum_over_time({stages})) / sum by (stage) (count_over_time({stages}))"

    return (
        built.with_panel(
            ui.bars(
                "Passes",
                "By kind; gaps are times in which nothing ran.",
                query(f"sum by (kind) (count_over_time({runs}[$__interval]))", "{{kind}}", interval="1m"),
            )
        )
        .with_panel(_failures(12))
        .with_panel(
            ui.bars(
                "Seconds of a detection, by stage",
                "The mean of passes.",
                query(mean_seconds("detect"), "{{stage}}", interval="1m"),
            )
            .unit("s")
            .decimals(2)
        )
        .with_panel(
            ui.bars(
                "Seconds of a forecast, by stage",
                "The mean of passes.",
                query(mean_seconds("forecast"), "{{stage}}", interval="1m"),
            )
            .unit("s")
            .decimals(2)
        )
        .with_panel(_points("Points read", "By kind of pass and source.", POINTS_READ))
        .with_panel(_points("Points written", "By kind of pass and source.", POINTS_WRITTEN))
        .with_panel(
            _points(
                "Points dropped", "Read, and without a result: the mission failed, or had no forecast.", POINTS_DROPPED
            )
        )
        .with_panel(
            ui.worst_first(
                "Slowest packs",
                "In the time range.",
                [
                    Column("Longest", f"max by (pack, kind) (max_over_time({runs}[$__range]))", unit="s"),
                    Column(
                        "Mean",
                        f"sum by (pack, kind) (sum_over_time({runs}[$__range])) "
                        f"/ sum by (pack, kind) (count_over_time({runs}[$__range]))",
                        unit="s",
                    ),
                    Column("Passes", f"sum by (pack, kind) (count_over_time({runs}[$__range]))"),
                ],
                by="Longest",
                width=12,
            )
        )
        .with_panel(
            ui.worst_first(
                "Missions by time since success",
                "Those that run.",
                [
                    Column("Scored ago", _age("detect"), unit="s", colours=_LATE),
                    Column("Forecast ago", _age("forecast"), unit="s", colours=_LATE),
                    Column("Forecast ends in", f"({_newest(FORECAST_END)}) - time()", unit="s", colours=_ENDING),
                    # A mission that never succeeded has no other figure.
                    Column("Failed passes", _FAILED, colours=_BAD),
                ],
                by="Scored ago",
                links={LABEL_MISSION: _TO_MISSION},
                width=12,
            )
        )
    )


def _points(title: str, about: str, metric: str) -> ui.Panel:
    counted = f"sum by (kind, source) (sum_over_time({metric}[$__interval]))"
    return ui.bars(title, about, query(counted, "{{kind}} {{source}}", interval="1m"), width=8)
