"""`at backtest`: what missions would have done over a stretch of the past."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anomaly_times.cli import options as opt
from anomaly_times.errors import MissionError, UsageError

if TYPE_CHECKING:
    from contextlib import ExitStack

    from anomaly_times.backtest import Labelled, Variant, Version
    from anomaly_times.backtest.suggest import Suggestion
    from anomaly_times.cli.backtest_changes import ChangesView
    from anomaly_times.cli.backtest_suggest import SuggestedView
    from anomaly_times.cli.backtest_views import BacktestView
    from anomaly_times.cli.options import MissionStores
    from anomaly_times.mission import Mission
    from anomaly_times.stores import Store

__all__ = ["backtest", "parse_variants"]

Last = Annotated[str | None, opt.option("Replay so long before --at [28d].", opt.TIME, "--last", metavar="DURATION")]
From = Annotated[str | None, opt.option("Replay from this time on.", opt.TIME, "--from", metavar="TIME")]
To = Annotated[str | None, opt.option("Replay up to this time [--at].", opt.TIME, "--to", metavar="TIME")]
Incidents = Annotated[
    Path | None,
    opt.option("What went wrong then: YAML, JSON or CSV.", opt.INCIDENTS, "--incidents", metavar="FILE"),
]
Check = Annotated[
    bool, opt.option("End with 3 unless each mission gets what its `backtest:` asks for.", opt.INCIDENTS, "--check")
]
Compare = Annotated[
    list[str] | None,
    opt.option(
        "Alternatives on the same values, and two rules by hand: model=profile,lgbm or level=99; can be repeated.",
        opt.MODEL,
        "--compare",
        metavar="OPTION=VALUES",
    ),
]
Suggest = Annotated[
    bool,
    opt.option("Say what to change, to keep to a budget and still find the incidents.", opt.INCIDENTS, "--suggest"),
]
MaxAlerts = Annotated[
    float | None,
    typer.Option(
        "--max-alerts-per-week",
        help="The budget of --suggest, for each mission [its `backtest.max_alerts_per_week`].",
        rich_help_panel=opt.INCIDENTS,
        metavar="NUMBER",
        min=0.0,
        max=10_080.0,
        show_default=False,
    ),
]
ChangedSince = Annotated[
    str,
    opt.option(
        "Only missions that are otherwise since this Git revision, before and after.",
        opt.MISSIONS,
        "--changed-since",
        metavar="REV",
    ),
]
Processes = Annotated[int | None, opt.option("Processes [processors].", opt.MISSIONS, "--jobs", "-j", metavar="N")]
Form = Annotated[
    opt.SectionsForm | None,
    opt.option("table, json or markdown [table, or as --out ends].", opt.OUTPUT, "--output", "-o", metavar="FORMAT"),
]


def backtest(
    ctx: typer.Context,
    files: opt.Files = None,
    changed_since: ChangedSince = "",
    promql: opt.PromQL = None,
    source: opt.SourceName = "",
    url: opt.Url = "",
    name: opt.Name = None,
    at: opt.At = "now",
    last: Last = None,
    start: From = None,
    end: To = None,
    step: opt.Step = None,
    lookback: opt.Lookback = None,
    horizon: opt.Horizon = None,
    every: opt.Every = None,
    timezone: opt.Timezone = None,
    model: opt.Model = None,
    model_param: opt.ModelParam = None,
    season: opt.Season = None,
    alerts_per_week: opt.AlertsPerWeek = None,
    level: opt.Level = None,
    compare: Compare = None,
    evidence: opt.EvidenceOption = None,
    direction: opt.DirectionOption = None,
    min_deviation: opt.MinDeviation = None,
    min_relative_deviation: opt.MinRelativeDeviation = None,
    valid_range: opt.ValidRange = None,
    missing: opt.MissingOption = None,
    alert_for: opt.AlertFor = None,
    incidents: Incidents = None,
    check: Check = False,
    suggest: Suggest = False,
    max_alerts_per_week: MaxAlerts = None,
    output: Form = None,
    out: opt.Out = None,
    plot: opt.Plot = None,
    top: opt.Top = 20,
    jobs: Processes = None,
) -> None:
    """Tell what missions would have alerted about in the past.

    Missions, or one query, are replayed: forecasts and scores at their cadences, each from what was known then. Nothing
    is written. Without FILES and --promql it is the missions of missions/.

    Examples: at backtest missions/ --last 28d --incidents incidents.yaml

    at backtest --url http://localhost:8428 --promql 'sum by (job) (rate(http_requests_total[5m]))' --compare level=99

    at backtest missions/ --changed-since origin/main --output markdown
    """
    from anomaly_times.cli import render
    from anomaly_times.cli.backtest_page import backtest_page
    from anomaly_times.cli.backtest_views import BacktestView

    form = _form(output, out, plot)
    asked = _asked(ctx.params)
    view = _changes(ctx, asked, changed_since) if changed_since else _backtest(ctx, asked)
    if plot is not None and isinstance(view, BacktestView):
        render.draw(plot, backtest_page(view))
    render.show_sections(view, form, out=out)
    if check and view.broken:
        raise MissionError("\n".join(["the backtest is not what was asked for", *view.broken]))
    if isinstance(view, BacktestView) and view.suggested is not None and view.suggested.failures:
        hint = "allow more alerts, or look whether the labelled incidents show in these series at all"
        raise MissionError("\n".join(["the budget cannot be kept to", *view.suggested.failures]), hint=hint)
    if view.exit_code:
        raise typer.Exit(view.exit_code)


@dataclass(frozen=True)
class _Asked:
    """What is replayed, of whatever missions: the window as `prepare` takes it, and what went wrong in it."""

    now: datetime
    last: timedelta | None
    start: datetime | None
    end: datetime
    incidents: Sequence[Labelled]
    variants: Sequence[Variant]


def _asked(params: Mapping[str, Any]) -> _Asked:
    """What the command's options say of it.

    Raises:
        UsageError: naming the option that makes no sense.
    """
    from anomaly_times.backtest.incidents import read_incidents

    now = opt.utc_now()
    last = opt.parse_window(params["last"], "--last")
    to, begin, labels = params["end"], params["start"], params["incidents"]
    end = opt.parse_time(to, now=now, option="--to") if to is not None else opt.parse_time(params["at"], now=now)
    start = opt.parse_time(begin, now=now, option="--from") if begin is not None else None
    if start is not None and (last is not None or start >= end):
        text = "--from and --last say two things" if last is not None else "--from must lie before --to"
        raise UsageError(text, hint="give --last 28d, or --from and --to")
    if params["max_alerts_per_week"] is not None and not params["suggest"]:
        raise UsageError("--max-alerts-per-week goes with --suggest", hint="`backtest:` in a mission is for --check")
    variants = parse_variants(params["compare"] or ())
    return _Asked(now, last, start, end, read_incidents(labels) if labels is not None else [], variants)


def _backtest(ctx: typer.Context, asked: _Asked) -> BacktestView:
    """The missions as they are, beside alternatives, and what to change where that is asked for.

    Raises:
        AnomalyTimesError: no mission could be replayed, or as `prepare`, `run` and `suggest` say.
    """
    from contextlib import ExitStack

    from anomaly_times.backtest import prepare, run
    from anomaly_times.backtest.suggest import Traces, budgets_of, suggest
    from anomaly_times.cli import render
    from anomaly_times.cli.backtest_views import BacktestView

    params = ctx.params
    with ExitStack() as opened:
        missions, stores = _missions(ctx, params["files"], opened)
        with render.progress("reading", len(missions)) as advance, opt.threads(None) as mapper:
            prepared = prepare(
                missions,
                stores,
                now=asked.now,
                last=asked.last,
                start=asked.start,
                end=asked.end,
                incidents=asked.incidents,
                variants=asked.variants,
                mapper=mapper,
                on_done=advance,
            )
    most, workers = params["max_alerts_per_week"], params["jobs"]
    traces = Traces() if params["suggest"] else None
    if traces is not None:
        # Before the work: what has no budget has no suggestion.
        budgets_of(prepared, most)
    with render.progress("forecasting and scoring", prepared.forecasts) as advance:
        result = run(prepared, workers=workers, on_done=advance, watch=traces)
    if all(trial.error is not None for trial in result.trials):
        [error, *_] = [trial.error for trial in result.trials if trial.error is not None]
        raise error
    if traces is None:
        return BacktestView(result, params["top"])
    with render.working("trying other settings"):
        found = suggest(prepared, result.trials, traces, max_alerts_per_week=most, workers=workers)
    return BacktestView(result, params["top"], _suggested(found, params["files"], query=params["promql"] is not None))


def _changes(ctx: typer.Context, asked: _Asked, revision: str) -> ChangesView:
    """The missions of FILES that are otherwise since `revision`, before and after.

    Raises:
        UsageError: another option does not go with it, or as `touched_missions`.
        MissionError: as `touched_missions`.
    """
    from anomaly_times.backtest import pair_up, prepare_versions, run
    from anomaly_times.cli import render
    from anomaly_times.cli.backtest_changes import ChangesView, touched_missions
    from anomaly_times.cli.mission_files import named_files

    params = ctx.params
    opt.require_file_options(ctx, "start", "end", "incidents", "check", "changed_since", *_NOT_OF_CHANGES)
    for name in _NOT_OF_CHANGES:
        if params[name]:
            raise UsageError(f"--{name} does not go with --changed-since", hint="run it by itself")
    touched = touched_missions(named_files(params["files"]), revision)
    versions = [each.version for each in touched]
    with (
        opt.MissionStores(params["source"], params["url"]) as sources,
        render.progress("reading", len(versions)) as advance,
        opt.threads(None) as mapper,
    ):
        prepared = prepare_versions(
            versions,
            _stores(sources, versions),
            now=asked.now,
            last=asked.last,
            start=asked.start,
            end=asked.end,
            incidents=asked.incidents,
            mapper=mapper,
            on_done=advance,
        )
    with render.progress("forecasting and scoring", prepared.forecasts) as advance:
        pairs = pair_up(versions, run(prepared, workers=params["jobs"], on_done=advance))
    return ChangesView(revision, touched, pairs)


_NOT_OF_CHANGES = ("compare", "suggest", "plot")


def _stores(sources: MissionStores, versions: Sequence[Version]) -> Mapping[str, Store]:
    """The stores of missions as they are, and as they were where the settings still know them.

    Raises:
        MissionError: a mission as it is names a source that is not in the settings.
        UsageError: what `--source`, `--url` or the settings say makes no sense.
    """
    from contextlib import suppress

    found = sources.of([version.after for version in versions if version.after is not None])
    for version in versions:
        if version.before is not None:
            with suppress(MissionError):
                found |= sources.of([version.before])
    return found


def _suggested(found: Sequence[Suggestion], files: list[Path] | None, *, query: bool) -> SuggestedView:
    """What is suggested, with a patch of the files, or the file of a query."""
    from anomaly_times.cli.backtest_suggest import SuggestedView, make_patch, mission_text
    from anomaly_times.cli.mission_files import named_files
    from anomaly_times.loading import load_missions

    if query:
        return SuggestedView(tuple(found), text="".join(map(mission_text, found)))
    return SuggestedView(tuple(found), make_patch(found, load_missions(named_files(files)).missions))


def _missions(
    ctx: typer.Context, files: Sequence[Path] | None, opened: ExitStack
) -> tuple[Sequence[Mission], Mapping[str, Store]]:
    """What to replay, and the open stores of it, which `opened` closes."""
    params = ctx.params
    if files or params["promql"] is None:
        opt.require_file_options(
            ctx, "start", "end", "incidents", "compare", "check", "top", "plot", "suggest", "max_alerts_per_week"
        )
        missions = opt.missions_from_files(files, hint="name FILES, or a query by --promql")
        return missions, opened.enter_context(opt.MissionStores(params["source"], params["url"])).of(missions)
    query = opt.query_from_options(params)
    return [query.mission], query.stores(opened.enter_context(query.open()))


def parse_variants(texts: Iterable[str]) -> list[Variant]:
    """The alternatives that `--compare` names: each value of each option by itself, then the rules by hand.

    Raises:
        UsageError: what is no option of missions, or has no value.
    """
    from anomaly_times.backtest import Variant
    from anomaly_times.backtest.yardsticks import YARDSTICKS

    found: list[Variant] = []
    for text in texts:
        option, equals, values = text.partition("=")
        path = opt.COMPARED.get(option.strip().replace("-", "_"))
        named = [value.strip() for value in values.split(",") if value.strip()]
        if path is None or not equals or not named:
            known = ", ".join(name.replace("_", "-") for name in opt.COMPARED)
            raise UsageError(
                f"--compare: {text[:64]!r} names no alternatives", hint=f"write it like model=profile,lgbm; {known}"
            )
        found += [Variant(f"{option.strip()}={value}", {path: _value(value)}) for value in named]
    return [*found, *(Variant(each.title, yardstick=each.name) for each in YARDSTICKS.values())] if found else []


def _value(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def _form(output: opt.SectionsForm | None, out: Path | None, plot: Path | None) -> opt.SectionsForm:
    """How to print: as asked, else as the file ends."""
    opt.require_writable(out, plot)
    if output is not None or out is None:
        return output or opt.SectionsForm.TABLE
    endings = {".json": opt.SectionsForm.JSON, ".md": opt.SectionsForm.MARKDOWN}
    return endings.get(out.suffix, opt.SectionsForm.TABLE)
