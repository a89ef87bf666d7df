"""Parts of Grafana dashboards: queries, panels and variables that look and behave alike on every page of ours.

Thin over Grafana's own builders (grafana-foundation-sdk, the build for Grafana 11.6). Every data source is the
variable `datasource`, so that a page is imported by hand or from a folder without a change.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import common, prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.builders import dashboard as page
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as styles
from grafana_foundation_sdk.models import dashboard as parts
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

__all__ = [
    "DATASOURCE",
    "TAG",
    "AnyVariable",
    "Column",
    "Page",
    "Panel",
    "bars",
    "choice",
    "datasource",
    "from_query",
    "lines",
    "new_page",
    "one_line",
    "query",
    "section",
    "shaded",
    "steps",
    "text_box",
    "tiles",
    "timeline",
    "to_json",
    "words",
    "worst_first",
]

DATASOURCE = parts.DataSourceRef("prometheus", "${datasource}")
"""The data source of everything on a page: what its variable says."""

TAG = "anomaly-times"
"""By this tag the pages find each other."""

Page = page.Dashboard
Panel = Builder[parts.Panel]
AnyVariable = Builder[parts.VariableModel]


def query(
    expr: str, legend: str = "__auto", *, ref: str = "A", interval: str = "", instant: bool = False
) -> prometheus.Dataquery:
    """A query over time, or of one moment.

    Args:
        expr: PromQL with Grafana's variables.
        legend: what its series are called; `{{label}}` is replaced.
        ref: tells the queries of one panel apart.
        interval: at least so far apart are its points.
        instant: the newest values alone.
    """
    built = prometheus.Dataquery().expr(expr).ref_id(ref).legend_format(legend).datasource(DATASOURCE)
    if interval:
        built = built.interval(interval)
    return built.instant() if instant else built.range()


def steps(*limits: tuple[float, str], base: str = "green") -> page.ThresholdsConfig:
    """Colours by value: `base`, and from each limit on another."""
    coloured = [parts.Threshold(None, base), *(parts.Threshold(value, colour) for value, colour in limits)]
    return page.ThresholdsConfig().mode(parts.ThresholdsMode.ABSOLUTE).steps(coloured)


def words(texts: Sequence[str], colours: Sequence[str]) -> parts.ValueMap:
    """The numbers 0, 1, … in words and colours."""
    pairs = enumerate(zip(texts, colours, strict=True))
    return parts.ValueMap({str(i): parts.ValueMappingResult(text, colour, index=i) for i, (text, colour) in pairs})


def lines(title: str, about: str, *queries: prometheus.Dataquery, width: int = 12, height: int = 8) -> timeseries.Panel:
    """Lines over time."""
    panel = timeseries.Panel().title(title).description(about).datasource(DATASOURCE).span(width).height(height)
    tooltip = common.VizTooltipOptions().mode(styles.TooltipDisplayMode.MULTI).sort(styles.SortOrder.DESCENDING)
    legend = common.VizLegendOptions().display_mode(styles.LegendDisplayMode.LIST).show_legend(True)
    panel = panel.tooltip(tooltip).legend(legend.placement(styles.LegendPlacement.BOTTOM)).no_value("none")
    return panel.line_width(1).show_points(styles.VisibilityMode.AUTO).targets(list(queries))


def bars(title: str, about: str, *queries: prometheus.Dataquery, width: int = 12, height: int = 8) -> timeseries.Panel:
    """Counts over time, stacked."""
    stacked = common.StackingConfig().mode(styles.StackingMode.NORMAL).group("A")
    panel = lines(title, about, *queries, width=width, height=height).draw_style(styles.GraphDrawStyle.BARS)
    return panel.fill_opacity(70).stacking(stacked).min(0).decimals(0)


def tiles(
    title: str, about: str, expr: str, *, unit: str = "short", colours: page.ThresholdsConfig, none: str = "none"
) -> stat.Panel:
    """One number of now, in a colour; six of them fill a row."""
    panel = stat.Panel().title(title).description(about).datasource(DATASOURCE).span(4).height(4)
    newest = common.ReduceDataOptions().calcs(["lastNotNull"]).values(False)
    panel = panel.with_target(query(expr, instant=True)).reduce_options(newest).unit(unit).thresholds(colours)
    return panel.graph_mode(styles.BigValueGraphMode.NONE).no_value(none)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its heading, the query that fills it, and how its numbers look."""

    heading: str
    expr: str
    unit: str = "short"
    colours: page.ThresholdsConfig | None = None
    mapping: parts.ValueMap | None = None


def worst_first(
    title: str,
    about: str,
    columns: Sequence[Column],
    *,
    by: str,
    links: Mapping[str, tuple[str, str]] | None = None,
    width: int = 24,
    height: int = 10,
) -> table.Panel:
    """A table of what has the same labels in several queries, the highest of column `by` first.

    Args:
        title: of the panel.
        about: its description.
        columns: of numbers; labels come before them.
        by: heading of the column that says the order.
        links: title and address behind the values of a label.
        width: of 24.
        height: in rows of the grid.
    """
    panel = table.Panel().title(title).description(about).datasource(DATASOURCE).span(width).height(height)
    refs = {chr(ord("A") + i): column for i, column in enumerate(columns)}
    for ref, column in refs.items():
        panel = panel.with_target(query(column.expr, ref=ref, instant=True).format(PromQueryFormat.TABLE))
        look: list[parts.DynamicConfigValue] = [parts.DynamicConfigValue("unit", column.unit)]
        if column.colours is not None:
            look.append(parts.DynamicConfigValue("thresholds", column.colours.build()))
            look.append(parts.DynamicConfigValue("custom.cellOptions", {"type": "color-text"}))
        if column.mapping is not None:
            look.append(parts.DynamicConfigValue("mappings", [column.mapping]))
            look.append(parts.DynamicConfigValue("custom.cellOptions", {"type": "color-text"}))
        panel = panel.override_by_name(column.heading, look)
    for label, (text, url) in (links or {}).items():
        panel = panel.override_by_name(label, [parts.DynamicConfigValue("links", [{"title": text, "url": url}])])
    # With one query alone the column of its values is called `Value`.
    names = {f"Value #{ref}" if len(refs) > 1 else "Value": column.heading for ref, column in refs.items()}
    arrange = {"excludeByName": {"Time": True}, "indexByName": {}, "renameByName": names}
    panel = panel.with_transformation(parts.DataTransformerConfig("merge", options={}))
    panel = panel.with_transformation(parts.DataTransformerConfig("organize", options=arrange))
    return panel.sort_by([common.TableSortByFieldState().display_name(by).desc(True)]).no_value("–")


def timeline(
    title: str, about: str, asked: prometheus.Dataquery, mapping: parts.ValueMapping, *, height: int
) -> statetimeline.Panel:
    """States over time in words, a row a series."""
    panel = statetimeline.Panel().title(title).description(about).datasource(DATASOURCE).span(24).height(height)
    legend = common.VizLegendOptions().display_mode(styles.LegendDisplayMode.LIST).show_legend(False)
    panel = panel.legend(legend.placement(styles.LegendPlacement.BOTTOM)).mappings([mapping]).no_value("none")
    return panel.merge_values(True).show_value(styles.VisibilityMode.AUTO).with_target(asked)


def section(title: str) -> page.Row:
    """A heading between panels."""
    return page.Row(title)


def datasource(chosen: str = "") -> page.DatasourceVariable:
    """Which Prometheus-compatible data source a page asks; `chosen`, a uid or a name, is so at first."""
    variable = page.DatasourceVariable("datasource").label("Data source").type("prometheus")
    return variable.current(parts.VariableOption(True, chosen, chosen)) if chosen else variable


def from_query(
    name: str, asked: str, *, label: str = "", regex: str = "", hidden: bool = False, everything: bool = False
) -> page.QueryVariable:
    """A variable whose choices the data source answers, in its order, anew when the time range changes.

    Args:
        name: of the variable.
        asked: `label_values(…)` or `query_result(…)`.
        label: what stands beside its choices.
        regex: what of each answer is a choice.
        hidden: without a place on the page.
        everything: several may be chosen, or all, which is so at first.
    """
    variable = page.QueryVariable(name).label(label or name.capitalize()).datasource(DATASOURCE).query(asked)
    variable = variable.refresh(parts.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(parts.VariableSort.DISABLED)
    if regex:
        variable = variable.regex(regex)
    if hidden:
        variable = variable.hide(parts.VariableHide.HIDE_VARIABLE)
    if everything:
        every = parts.VariableOption(True, "All", "$__all")
        variable = variable.multi(True).include_all(True).all_value(".*").current(every)
    return variable


def choice(name: str, options: Mapping[str, str], *, label: str, chosen: str = "", about: str = "") -> AnyVariable:
    """A variable with these choices, by text; `${name}` is the value and `${name:text}` the text of the one chosen.

    A link may name either of both. Texts must not hold ` : `.
    """
    first = chosen or next(iter(options))
    listed = [parts.VariableOption(text == first, text, value) for text, value in options.items()]
    pairs = [text if text == value else f"{text} : {value}" for text, value in options.items()]
    variable = page.CustomVariable(name).label(label).description(about).options(listed)
    # A comma would begin the next choice.
    variable = variable.values(", ".join(pair.replace(",", r"\,") for pair in pairs))
    return variable.current(parts.VariableOption(True, first, options[first]))


def text_box(name: str, default: str, *, label: str, about: str) -> page.TextBoxVariable:
    """A variable that is written by hand."""
    variable = page.TextBoxVariable(name).label(label).description(about).default_value(default)
    return variable.current(parts.VariableOption(True, default, default))


def shaded(name: str, expr: str, interval: str) -> page.AnnotationQuery:
    """Stretches of time in which `expr` has values, shaded in every chart of a page."""
    annotation = page.AnnotationQuery().name(name).datasource(DATASOURCE).enable(True).icon_color("red")
    annotation = annotation.expr(expr)
    built = annotation.build()
    # Grafana 11 reads the query of an annotation as that of a panel; the builder knows no Prometheus target there.
    built.target = _Target(expr, interval)
    return annotation


class _Target(parts.AnnotationTarget):
    def __init__(self, expr: str, interval: str) -> None:
        super().__init__()
        self._json = {"datasource": DATASOURCE, "expr": expr, "interval": interval, "refId": "Anno"}

    def to_json(self) -> dict[str, object]:
        return dict(self._json)


def new_page(title: str, uid: str, about: str, variables: Sequence[AnyVariable]) -> Page:
    """An empty page with links to its sisters, the last day, and these variables."""
    links = page.DashboardLink("Anomaly Times").type(parts.DashboardLinkType.DASHBOARDS).tags([TAG]).keep_time(True)
    built = page.Dashboard(title).uid(uid).description(about).tags([TAG]).editable().link(links.icon("external link"))
    built = built.time("now-24h", "now").refresh("1m").timezone("browser").tooltip(parts.DashboardCursorSync.CROSSHAIR)
    return built.variables(list(variables))


def to_json(built: Page) -> str:
    """The file of a page: the same page gives the same text."""
    made = built.build()
    for number, panel in enumerate(made.panels or [], 1):
        panel.id_val = number
    return JSONEncoder(sort_keys=True, indent=2).encode(made) + "\n"


_TOKEN = re.compile(r"""("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|`[^`]*`)|\s*:\s*|(?:\s|\#[^\n]*)+""")


def one_line(promql: str) -> str:
    """The same query on one line, without comments and without ` : `, which custom variables take for a border."""
    return _TOKEN.sub(_plain, promql).strip()


def _plain(found: re.Match[str]) -> str:
    text = found[1]
    if text is None:
        return ":" if found[0].strip() == ":" else " "
    if text.startswith("`") and ("\n" in text or re.search(r"\s:\s", text)):
        escaped = text[1:-1].replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
        text = f'"{escaped}"'
    return text if text.startswith("`") else re.sub(r"(\s):(?=\s)", r"\1\\x3a", text)
