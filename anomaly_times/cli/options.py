"""The options that commands share, and what they mean: a source, a mission, a time, an output."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer
from typer.core import TyperCommand

from anomaly_times.errors import MissionError, UsageError, in_our_words

if TYPE_CHECKING:
    from pydantic import ValidationError

    from anomaly_times.loading import Loading
    from anomaly_times.mission import Mission
    from anomaly_times.passes import Mapper
    from anomaly_times.problems import Problem
    from anomaly_times.settings import Settings, Source
    from anomaly_times.stores import Store

__all__ = [
    "GroupedHelp",
    "MissionStores",
    "Output",
    "Query",
    "errors_of",
    "missions_from_files",
    "open_source",
    "option",
    "output_format",
    "parse_since",
    "parse_time",
    "query_from_options",
    "require_file_options",
    "require_query_options",
    "require_writable",
    "threads",
    "utc_now",
]

DEFAULT_FILES = Path("missions")
NO_FILES = "name FILES, or write a first one: `at mission init`"
_CLOCKS_DIFFER = timedelta(minutes=1)
MISSIONS, QUERY, TIME, MODEL, GATES, INCIDENTS, OUTPUT = (
    "Missions",
    "Query",
    "Time",
    "Model and bounds",
    "What counts as anomalous",
    "Incidents",
    "Output",
)


class Output(StrEnum):
    """How a result is printed."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"


class Report(StrEnum):
    """How a report for people is printed."""

    TABLE = "table"
    JSON = "json"


class SectionsForm(StrEnum):
    """How a report of several tables is printed."""

    TABLE = "table"
    JSON = "json"
    MARKDOWN = "markdown"


class EngineOption(StrEnum):
    """Where missions run."""

    LOCAL = "local"
    RAY = "ray"


class GroupedHelp(TyperCommand):
    """A command whose help lists its options in groups (Typer groups them only in Rich's help)."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one section a group, in the order of the options."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                # Typer puts the Python type of an argument after its name: `FILES <list[Path]>`.
                name, text = record
                shown = name.partition(" <")[0] if param.param_type_name == "argument" else name
                groups.setdefault(getattr(param, "rich_help_panel", None) or "Options", []).append((shown, text))
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)


def option(help: str, panel: str, *names: str, metavar: str | None = None) -> Any:  # noqa: A002 - Typer's word
    """An option of a command, in a group of its help."""
    return typer.Option(*names, help=help, rich_help_panel=panel, metavar=metavar, show_default=False)


Files = Annotated[
    list[Path] | None,
    typer.Argument(
        help="Mission files, folders or globs [missions/].",
        rich_help_panel=MISSIONS,
        metavar="FILES",
        show_default=False,
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        "-j",
        help="Missions at once [processors, 8 at most].",
        rich_help_panel=MISSIONS,
        min=1,
        max=256,
        metavar="N",
        show_default=False,
    ),
]
On = Annotated[
    EngineOption | None,
    option("Where missions run: local, or ray [as the settings say, else local].", MISSIONS, "--on", metavar="ENGINE"),
]
RayAddress = Annotated[
    str | None,
    option(
        "A Ray cluster, HOST:PORT [as the settings say, else one started here].",
        MISSIONS,
        "--ray-address",
        metavar="ADDRESS",
    ),
]
PromQL = Annotated[
    str | None,
    option("One query to forecast and watch, instead of FILES.", QUERY, "--promql", "-q", metavar="QUERY"),
]
SourceName = Annotated[str, option("A source from the settings.", QUERY, "--source", metavar="NAME")]
Url = Annotated[
    str, option("A server, or a folder of Parquet or CSV files, instead of --source.", QUERY, "--url", metavar="URL")
]
Name = Annotated[
    str | None,
    option(
        "Mission name: the label `mission` of results. Derived from the query by default.",
        QUERY,
        "--name",
        metavar="NAME",
    ),
]
At = Annotated[
    str,
    option(
        "Work as if it were this time: ISO 8601 (UTC unless it says otherwise), `now`, or `-2h`.",
        TIME,
        "--at",
        metavar="TIME",
    ),
]
Last = Annotated[
    str | None,
    option(
        "Score this much, scored or not [what is not scored yet, an hour at most].", TIME, "--last", metavar="DURATION"
    ),
]
Step = Annotated[str | None, option("Time between two points [1m].", TIME, "--step", metavar="DURATION")]
Lookback = Annotated[str | None, option("History to learn from [14d].", TIME, "--lookback", metavar="DURATION")]
Horizon = Annotated[str | None, option("How far to forecast [twice --every].", TIME, "--horizon", metavar="DURATION")]
Every = Annotated[str | None, option("How often a forecast is made [1h].", TIME, "--every", metavar="DURATION")]
Timezone = Annotated[
    str | None, option("Time zone of days and weeks, e.g. Europe/Berlin [UTC].", TIME, "--timezone", metavar="ZONE")
]
Model = Annotated[str | None, option("Model, see `at models` [auto].", MODEL, "--model", metavar="NAME")]
ModelParam = Annotated[
    list[str] | None,
    option("A parameter of the model; can be repeated.", MODEL, "--model-param", metavar="KEY=VALUE"),
]
Season = Annotated[
    str | None,
    option("Seasonal periods: `auto`, `none`, or like 1d,1w [auto].", MODEL, "--season", metavar="PERIODS"),
]
AlertsPerWeek = Annotated[
    str | None,
    option(
        "False alarms a series and week that normal data may raise [0.5].", MODEL, "--alerts-per-week", metavar="NUMBER"
    ),
]
Level = Annotated[
    str | None,
    option("Instead of a budget: per cent of normal points inside the bounds.", MODEL, "--level", metavar="PERCENT"),
]
EvidenceOption = Annotated[
    str | None,
    option(
        "all: points, and what lasts, roughens, drifts or stands still; point: points alone [all].",
        GATES,
        "--evidence",
        metavar="WHAT",
    ),
]
DirectionOption = Annotated[
    str | None,
    option("Which side counts: both, above or below [both].", GATES, "--direction", metavar="SIDE"),
]
MinDeviation = Annotated[
    str | None,
    option("Smaller deviations score 0: a number, or BELOW,ABOVE.", GATES, "--min-deviation", metavar="NUMBER"),
]
MinRelativeDeviation = Annotated[
    str | None,
    option(
        "The same as a share of the forecast: 20%, or BELOW,ABOVE.",
        GATES,
        "--min-relative-deviation",
        metavar="SHARE",
    ),
]
ValidRange = Annotated[
    str | None,
    option(
        "Values that can be: 0:100, or open like 0: (others are anomalous).", GATES, "--valid-range", metavar="RANGE"
    ),
]
MissingOption = Annotated[
    str | None,
    option(
        "An expected point that is not there: ignore, zero, or anomaly [ignore].", GATES, "--missing", metavar="MEANING"
    ),
]
AlertFor = Annotated[
    str | None,
    option("How long a score is over 1 before anybody is told [5m].", GATES, "--alert-for", metavar="DURATION"),
]
ProfileOption = Annotated[bool, option("Say on stderr where the time went, by stage.", OUTPUT, "--profile")]
DryRun = Annotated[bool, option("Read and compute, write nothing.", OUTPUT, "--dry-run")]
OutputOption = Annotated[
    Output | None,
    option("table, json, csv or parquet [table, or as --out ends].", OUTPUT, "--output", "-o", metavar="FORMAT"),
]
Out = Annotated[Path | None, option("Print into this file instead.", OUTPUT, "--out", metavar="FILE")]
Plot = Annotated[Path | None, option("Draw the series into this HTML page.", OUTPUT, "--plot", metavar="FILE")]
Top = Annotated[
    int,
    typer.Option(
        "--top", help="Rows of the table, and charts of the page; 0: all.", rich_help_panel=OUTPUT, min=0, metavar="N"
    ),
]
ReportOption = Annotated[Report, option("table or json [table].", OUTPUT, "--output", "-o", metavar="FORMAT")]

# Where in a mission each option lands; a validation error is led back the same way.
_FIELDS: dict[str, tuple[str, ...]] = {
    "name": ("name",),
    "promql": ("promql",),
    "step": ("step",),
    "timezone": ("timezone",),
    "season": ("season",),
    "lookback": ("forecast", "lookback"),
    "horizon": ("forecast", "horizon"),
    "every": ("forecast", "every"),
    "model": ("forecast", "model"),
    "level": ("forecast", "level"),
    "alerts_per_week": ("detect", "alerts_per_week"),
    "evidence": ("detect", "evidence"),
    "direction": ("detect", "direction"),
    "min_deviation": ("detect", "min_deviation"),
    "min_relative_deviation": ("detect", "min_relative_deviation"),
    "valid_range": ("detect", "valid_range"),
    "missing": ("detect", "missing"),
    "alert_for": ("alert", "for"),
}
COMPARED = {name: path for name, path in _FIELDS.items() if name not in ("name", "promql", "step", "timezone")}
"""What `at backtest --compare` tries other values of, and where that lands in a mission."""


@dataclass(frozen=True)
class Query:
    """What a command by hand is about: one mission, where its metrics are, and the time to work for."""

    mission: Mission
    source: Source
    now: datetime
    settings: Settings

    def open(self) -> Store:
        """The store of this query; close it."""
        from anomaly_times.stores import open_store

        return open_store(self.source, state=self.settings.state_url)

    def place_of_forecasts(self, store: Store) -> str:
        """Where a forecast goes: into the source, or, where that must not get the future, a folder."""
        from anomaly_times.stores.prometheus import PrometheusStore

        if isinstance(store, PrometheusStore) and not store.writes_ahead(self.mission):
            return f"{self.settings.state_url}, until its time comes,"
        return str(self.source)

    def stores(self, store: Store) -> dict[str, Store]:
        """`store` under the name that the mission knows it by, as passes take it."""
        return {self.mission.source: store}


def query_from_options(params: Mapping[str, Any]) -> Query:
    """The query that a command's options describe.

    Args:
        params: the command's parameters by name; those that are `None` or absent take the mission's defaults.

    Raises:
        UsageError: naming the option that makes no sense.
    """
    from pydantic import ValidationError

    from anomaly_times.conventions import name_for_query
    from anomaly_times.mission import Mission

    if params.get("level") is not None and params.get("alerts_per_week") is not None:
        raise UsageError(
            "--level and --alerts-per-week say two things", hint="keep the plain interval, or the alert budget"
        )
    settings, identity, source = open_source(params["source"], params["url"])
    given = {option: value for option in _FIELDS if (value := params.get(option)) is not None}
    given.setdefault("name", name_for_query(identity, given["promql"]))
    spec: dict[str, Any] = {}
    for option, value in given.items():
        *parents, field = _FIELDS[option]
        inner = spec
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[field] = _read_value(option, value)
    if params.get("model_param"):
        forecast = spec.setdefault("forecast", {})
        forecast["model"] = {"type": forecast.get("model", "auto"), **_model_params(params["model_param"])}
    try:
        mission = Mission.model_validate(spec)
    except ValidationError as exc:
        raise UsageError(_byoption(exc), hint=_hint(str(exc), given)) from None
    return Query(mission, source, parse_time(params["at"], now=utc_now()), settings)


# What says something beside mission files; everything else stands in them.
_BESIDE_FILES = frozenset(
    {"files", "jobs", "on", "ray_address", "source", "url", "at", "last", "dry_run", "profile", "output", "out"}
)


def profiled(ctx: typer.Context) -> None:
    """Count stages until the command ends, however it does, and then say what they took."""
    from anomaly_times.cli import render
    from anomaly_times.profiling import listening

    listener = listening()
    profile = listener.__enter__()

    def tell() -> None:
        listener.__exit__(None, None, None)
        render.say_profile(profile.stages)

    ctx.call_on_close(tell)


def require_file_options(ctx: typer.Context, *beside: str) -> None:
    """Refuse what says nothing, or contradicts, where missions come from files.

    Args:
        ctx: of the command.
        beside: parameters of this command that go with files, besides the usual ones.

    Raises:
        UsageError: naming the option.
    """
    if ctx.params["promql"] is not None:
        raise UsageError("FILES and --promql say two things", hint="give one of them")
    for name in sorted(set(ctx.params) - _BESIDE_FILES - set(beside)):
        if _given(ctx, name):
            raise UsageError(
                f"--{name.replace('_', '-')} does not go with mission files",
                hint="missions say it themselves; with --promql it goes for one query",
            )


def require_query_options(ctx: typer.Context) -> None:
    """Refuse what says nothing where there is one query.

    Raises:
        UsageError: naming the option.
    """
    for name in ("jobs", "on", "ray_address"):
        if _given(ctx, name):
            raise UsageError(f"--{name.replace('_', '-')} goes with mission files: one query is one job")


def _given(ctx: typer.Context, name: str) -> bool:
    return getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"


def missions_from_files(
    files: Sequence[Path] | None, *, checked: bool = False, hint: str = NO_FILES
) -> tuple[Mission, ...]:
    """The missions of files, folders and globs; those of `missions/` where none are given.

    Args:
        files: what the user named.
        checked: refuse what `at mission validate --offline` calls an error, too, unless the mission silences it.
        hint: what to try where nothing is named, and there is no `missions/`.

    Raises:
        MissionError: listing all that is wrong in the files, or that there is no mission in them.
        UsageError: a file that is not there.
    """
    from anomaly_times.loading import load_missions

    if not files and not DEFAULT_FILES.exists():
        raise UsageError(f"there is no {DEFAULT_FILES}/ here, and no mission file is named", hint=hint)
    loading = load_missions(files or [DEFAULT_FILES])
    problems = errors_of(loading) if checked else loading.problems
    if problems:
        lines = [f"{problem}" + (f" ({problem.hint})" if problem.hint else "") for problem in problems]
        raise MissionError("\n".join(["the mission files have problems", *lines]))
    if not loading.missions:
        named = ", ".join(str(file) for file in files or [DEFAULT_FILES])
        raise MissionError(f"there is no mission in {named}", hint="`at mission init` writes a first one")
    return tuple(loaded.mission for loaded in loading.missions)


def errors_of(loading: Loading) -> list[Problem]:
    """What loading found, and what checks that ask no server call an error."""
    from anomaly_times.checks import check_missions
    from anomaly_times.settings import load_settings

    report = check_missions(loading, now=utc_now(), sources=load_settings().sources or None)
    return [problem for problem in report.problems if problem.severity == "error"]


@dataclass(eq=False)
class MissionStores:
    """The stores that missions need, by the name that missions know them by; each is opened once.

    Args:
        name: `--source`, for missions that name none.
        url: `--url`, likewise.
    """

    name: str
    url: str
    sources: dict[str, Source] = field(default_factory=dict, init=False)
    """What was opened, by the name that missions know it by."""
    _open: dict[str, Store] = field(default_factory=dict, init=False)

    def of(self, missions: Sequence[Mission]) -> dict[str, Store]:
        """The stores of `missions`, as passes take them.

        Raises:
            MissionError: a mission names a source that is not in the settings.
            UsageError: what `--source`, `--url` or the settings say makes no sense.
        """
        from anomaly_times.stores import open_store

        stores: dict[str, Store] = {}
        for mission in missions:
            if mission.source in stores:
                continue
            try:
                name, url = (mission.source, "") if mission.source else (self.name, self.url)
                settings, known, source = open_source(name, url)
            except UsageError as exc:
                if not mission.source:
                    raise
                raise MissionError(f"mission {mission.name}: {exc.message}", hint=exc.hint) from exc
            if known not in self._open:
                self._open[known] = open_store(source, state=settings.state_url)
            stores[mission.source], self.sources[mission.source] = self._open[known], source
        return stores

    def close(self) -> None:
        """Give all connections back."""
        while self._open:
            self._open.popitem()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def default_jobs() -> int:
    """How many missions run at once where nothing is said: reading waits, and models compute."""
    return min(8, os.cpu_count() or 1)


@contextmanager
def threads(jobs: int | None) -> Iterator[Mapper]:
    """A mapper that runs `jobs` items at once; what has not begun when the body fails never does."""
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(jobs or default_jobs(), thread_name_prefix="mission")
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)


def open_source(name: str, url: str) -> tuple[Settings, str, Source]:
    """The settings, and the source that `--source` and `--url` name: what it is called, and what it is.

    A folder is called by its absolute path, so that its missions keep their names wherever one stands.

    Raises:
        UsageError: for both options, an unknown source, or what is neither URL nor folder.
    """
    from anomaly_times.settings import load_settings, source_for_url

    if name and url:
        raise UsageError("--source and --url say two things", hint="give one of them")
    settings = load_settings()
    if not url:
        known, source = settings.named_source(name)
        return settings, known, source
    source = source_for_url(url)
    return settings, str(source.folder.resolve()) if source.folder else str(source), source


def parse_time(text: str, *, now: datetime, option: str = "--at") -> datetime:
    """The time that `text` means, in UTC: `now`, so long before it (`-2h`), or ISO 8601 (UTC where no zone is given).

    Args:
        text: what the user gave.
        now: with a time zone.
        option: whose value it is, for messages.

    Raises:
        UsageError: for anything else, and for times that no metric has, or that are still to come.
    """
    from datetime import UTC

    from anomaly_times.durations import parse_duration

    if text == "now":
        return now
    try:
        if text.startswith("-"):
            return now - parse_duration(text[1:])
        at = datetime.fromisoformat(text)
    except (ValueError, UsageError):
        hint = f"-{text} is so long ago" if _is_duration(text) else "write it like 2026-03-01T12:00Z, `now`, or -2h"
        raise UsageError(f"{option}: {text[:64]!r} is no time", hint=hint) from None
    at = at.replace(tzinfo=UTC) if at.tzinfo is None else at
    if not 1980 <= at.year <= 2200:
        raise UsageError(f"{option}: {text[:64]!r} is out of range", hint="metrics live between 1980 and 2200")
    if at > now + _CLOCKS_DIFFER:
        raise UsageError(f"{option}: {text[:64]!r} has not come yet", hint=f"it is {now:%Y-%m-%d %H:%M} UTC")
    return at.astimezone(UTC)


def parse_since(text: str, *, now: datetime) -> datetime:
    """The time that `--since` names, in UTC and whole seconds: as `parse_time`, and a duration (`2h`) for so long ago.

    Raises:
        UsageError: for anything else, and for times that no metric has, or that are still to come.
    """
    at = parse_time(f"-{text}" if _is_duration(text) else text, now=now, option="--since")
    return min(at, now).replace(microsecond=0)


def _is_duration(text: str) -> bool:
    from anomaly_times.durations import parse_duration

    try:
        parse_duration(text)
    except UsageError:
        return False
    return True


def parse_window(text: str | None, option: str) -> timedelta | None:
    """The duration that an option holds.

    Raises:
        UsageError: naming the option.
    """
    from anomaly_times.durations import parse_duration

    if text is None:
        return None
    try:
        return parse_duration(text)
    except UsageError as exc:
        raise UsageError(f"{option}: {exc.message}", hint=exc.hint) from None


def require_writable(*files: Path | None) -> None:
    """Refuse a file that cannot be written, before the work is done.

    Raises:
        UsageError: naming it.
    """
    for file in files:
        if file is not None and (file.is_dir() or not file.parent.is_dir()):
            raise UsageError(f"{file} cannot be written: its folder does not exist, or it is one")


def output_format(output: Output | None, *files: Path | None) -> Output:
    """How to print: as asked, else as the first of `files` (that of `--out`) ends, else a table.

    Raises:
        UsageError: a file that cannot be written, or Parquet for a terminal.
    """
    require_writable(*files)
    out = files[0] if files else None
    if output is None:
        ending = out.suffix.removeprefix(".") if out is not None else ""
        output = Output(ending) if ending in (Output.JSON, Output.CSV, Output.PARQUET) else Output.TABLE
    if output is Output.PARQUET and out is None and sys.stdout.isatty():
        raise UsageError("Parquet is nothing for a terminal", hint="add --out FILE, or send it into a pipe")
    return output


def utc_now() -> datetime:
    """The time, in UTC: the command line is where the clock is read."""
    from datetime import UTC

    return datetime.now(UTC)


def _read_value(option: str, text: str) -> object:
    """What the mission takes for an option's text."""
    if option in ("min_deviation", "min_relative_deviation") and "," in text:
        return tuple(part.strip() for part in text.split(","))
    if option == "valid_range":
        low, colon, high = text.partition(":")
        if not colon:
            raise UsageError(f"--valid-range: {text[:64]!r} is no range", hint="write it like 0:100, 0: or :1")
        return low.strip() or "-inf", high.strip() or "inf"
    if option == "season" and text not in ("auto", "none"):
        return tuple(part.strip() for part in text.split(","))
    return text


def _model_params(pairs: list[str]) -> dict[str, Any]:
    import yaml

    params: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier() or key == "type":
            raise UsageError(f"--model-param: {pair[:64]!r} is no parameter", hint="write it like lags=48")
        try:
            # As in a mission file: numbers, true, [seasonmix, holt], {a: 1}.
            params[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            params[key] = value
    return params


def _hint(problem: str, given: Mapping[str, str]) -> str:
    """What to try about what pydantic says of the options."""
    from anomaly_times.durations import format_duration, parse_duration

    # A long step needs a longer horizon and lookback than the usual ones.
    for option in ("horizon", "lookback"):
        if f"the {option} must cover" in problem:
            return f"--{option} {format_duration(2 * parse_duration(given.get('step', '1m')))}, or more"
    if "detect.alerts_per_week" in problem:
        return "0.5 is one alert in two weeks; who wants more than 168, one an hour, wants a plain interval: --level 99"
    return "`--help` shows what each option takes"


def _byoption(exc: ValidationError) -> str:
    """One line a problem, each under the option that it stems from."""
    lines: dict[str, None] = {}
    for error in exc.errors(include_input=False, include_url=False, include_context=False):
        where = tuple(str(part) for part in error["loc"])
        option = next((name for name, path in _FIELDS.items() if where[: len(path)] == path), None)
        text = in_our_words(error["msg"])
        lines[f"--{option.replace('_', '-')}: {text}" if option else text] = None
    return "; ".join(lines)
