"""`at explain`: why a mission scored what it did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anomaly_times.cli import options as opt
from anomaly_times.errors import MissionError, PrefectError, UsageError

if TYPE_CHECKING:
    from anomaly_times.cli.explain_view import Origin
    from anomaly_times.mission import Mission

__all__ = ["explain"]

_NAMED = 10
Name = Annotated[
    str | None, opt.option("Its name [the only one there is].", opt.MISSIONS, "--mission", "-m", metavar="NAME")
]
Series = Annotated[
    str,
    opt.option("Only series with such labels [that of the highest score].", opt.QUERY, "--series", metavar="SELECTOR"),
]
At = Annotated[
    str | None,
    opt.option("The time to explain: ISO 8601, `now`, or -2h [of the newest score].", opt.TIME, "--at", metavar="TIME"),
]
Top = Annotated[
    int, typer.Option("--top", help="So many series; 0: all.", rich_help_panel=opt.OUTPUT, min=0, metavar="N")
]
Form = Annotated[
    opt.SectionsForm,
    opt.option("table, json or markdown [table].", opt.OUTPUT, "--output", "-o", metavar="FORMAT"),
]


def explain(
    ctx: typer.Context,
    files: opt.Files = None,
    name: Name = None,
    promql: opt.PromQL = None,
    source: opt.SourceName = "",
    url: opt.Url = "",
    series: Series = "",
    at: At = None,
    step: opt.Step = None,
    level: opt.Level = None,
    evidence: opt.EvidenceOption = None,
    direction: opt.DirectionOption = None,
    min_deviation: opt.MinDeviation = None,
    min_relative_deviation: opt.MinRelativeDeviation = None,
    valid_range: opt.ValidRange = None,
    missing: opt.MissingOption = None,
    top: Top = 1,
    output: Form = opt.SectionsForm.TABLE,
) -> None:
    """Tell why a mission scored what it did.

    The value, its forecast and bounds, the evidence, and what kept it from counting, from what is stored. The mission
    is one of FILES, or of a query; without both one that is deployed, or one of missions/. Of any other name that has
    scores, what is stored is told.

    Examples: at explain --mission checkout-latency --at 2026-03-01T03:40

    at explain missions/ --mission checkout-latency --series '{service="checkout"}' --at -2h
    """
    from anomaly_times.cli import render
    from anomaly_times.cli.explain_view import ExplainView
    from anomaly_times.explain import explain as account_of

    now = opt.utc_now()
    time = opt.parse_time(at, now=now) if at is not None else None
    with opt.MissionStores(source, url) as opened, render.working("looking"):
        found = _find(ctx, files, opened, time or now)
        store = opened.of([found.mission])[found.mission.source]
        account = account_of(
            found.mission,
            store,
            now=now,
            at=time,
            selector=series,
            top=top,
            since=found.since,
            known=found.known,
        )
    render.show_sections(ExplainView(account, found.origin, store.name), output)


@dataclass(frozen=True)
class _Found:
    """A mission, and where its definition came from; not `known` where only its name and step are."""

    mission: Mission
    origin: Origin
    since: datetime | None = None
    known: bool = True


def _find(ctx: typer.Context, files: Sequence[Path] | None, opened: opt.MissionStores, at: datetime) -> _Found:
    """The mission that the options mean.

    Raises:
        MissionError: there is none of that name, neither defined nor in the source.
        UsageError: no mission is named, and there are several.
    """
    from anomaly_times.cli.explain_view import Origin

    params = ctx.params
    if params["promql"] is not None:
        if files:
            raise UsageError("FILES and --promql say two things", hint="give one of them")
        query = opt.query_from_options({**params, "at": "now"})
        return _Found(query.mission, Origin(_query_arguments(query.mission, params)))
    _refuse_query_options(params)
    known, notes = _known(files)
    name = params["name"]
    if name is None:
        if len(known) != 1:
            some = ", ".join(sorted(known)[:_NAMED]) + (", …" if len(known) > _NAMED else "")
            raise UsageError("name a mission: --mission NAME", hint=f"there are {some}" if known else opt.NO_FILES)
        [name] = known
    if name in known:
        return known[name]
    return _by_name(name, sorted(known), opened, at, notes)


def _query_arguments(mission: Mission, params: Mapping[str, Any]) -> tuple[str, ...]:
    """How the options of other commands name the same query."""
    from anomaly_times.durations import format_duration

    where = [f"--{option}={params[option]}" for option in ("source", "url") if params[option]]
    return (*where, "--promql", mission.promql, "--step", format_duration(mission.step))


_OF_QUERY = (
    "step",
    "level",
    "evidence",
    "direction",
    "min_deviation",
    "min_relative_deviation",
    "valid_range",
    "missing",
)


def _refuse_query_options(params: Mapping[str, Any]) -> None:
    for option in _OF_QUERY:
        if params[option] is not None:
            raise UsageError(
                f"--{option.replace('_', '-')} goes with --promql", hint="missions say it themselves, in their files"
            )


def _known(files: Sequence[Path] | None) -> tuple[dict[str, _Found], tuple[str, ...]]:
    """The missions that are defined, by name; and why some may be missing."""
    from anomaly_times.cli.explain_view import Origin

    notes: tuple[str, ...] = ()
    if not files:
        try:
            deployed = _deployed()
        except PrefectError as exc:
            deployed, notes = None, (f"what is deployed is not known: {exc.message}",)
        if deployed is not None:
            return deployed, ()
        if not opt.DEFAULT_FILES.exists():
            return {}, notes
    arguments = tuple(map(str, files)) if files else (f"{opt.DEFAULT_FILES}/",)
    origin = Origin(arguments, notes=notes)
    return {mission.name: _Found(mission, origin) for mission in opt.missions_from_files(files)}, notes


def _deployed() -> dict[str, _Found] | None:
    """What is deployed of our project, by name; `None` where no Prefect server is set."""
    from anomaly_times.cli.explain_view import Origin
    from anomaly_times.scheduling.server import connect, is_set
    from anomaly_times.settings import load_settings

    settings = load_settings()
    if not is_set(settings.prefect):
        return None
    found = {}
    with connect(settings.prefect) as server:
        for one in server.read_state(settings.project).found.values():
            deployed = one.deployed if one.project == settings.project else None
            if deployed is not None:
                mission = deployed.mission
                source = {"source": mission.source, "url": ""}
                origin = Origin(_query_arguments(mission, source), True, deployed.paused)
                found[mission.name] = _Found(mission, origin, deployed.since)
    return found


def _by_name(
    name: str, known: Sequence[str], opened: opt.MissionStores, at: datetime, notes: tuple[str, ...]
) -> _Found:
    """A mission that nobody defines here, as far as its scores tell."""
    from difflib import get_close_matches

    from pydantic import ValidationError

    from anomaly_times.cli.explain_view import Origin
    from anomaly_times.mission import Mission
    from anomaly_times.stores.stored import mission_names, stored_step

    def stand_in(step: object) -> Mission:
        # Forecasts of one step, for the rules about horizons are for those who write missions.
        forecast = {"every": step, "horizon": step, "lookback": "14d"}
        return Mission.model_validate({"name": name, "promql": "vector(0)", "step": step, "forecast": forecast})

    try:
        probe = stand_in("1m")
    except ValidationError:
        raise UsageError(
            f"--mission: {name[:64]!r} is no name of a mission", hint="lower-case letters, digits, hyphens"
        ) from None
    store = opened.of([probe])[""]
    step = stored_step(store, name, at)
    if step is None:
        near = get_close_matches(name, sorted({*known, *mission_names(store, at)}), 3)
        hint = f"did you mean {' or '.join(near)}?" if near else "name FILES that define it, or its --source"
        raise MissionError(f"there is no mission {name!r}, and no score of one in {store.name}", hint=hint)
    return _Found(stand_in(step), Origin(notes=notes), known=False)
