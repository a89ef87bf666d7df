"""`at status`: how missions are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from anomaly_times.cli import options as opt
from anomaly_times.errors import AnomalyTimesError, MissionError, UsageError

if TYPE_CHECKING:
    from anomaly_times.cli.status_view import Deployed
    from anomaly_times.mission import Mission

__all__ = ["status"]

EXIT_LATE = 3


def status(
    files: opt.Files = None,
    source: opt.SourceName = "",
    url: opt.Url = "",
    fail_on_lag: Annotated[
        bool, typer.Option("--fail-on-lag", help="Exit with 3 where a mission that is not paused is not ok.")
    ] = False,
    output: opt.ReportOption = opt.Report.TABLE,
) -> None:
    """Show how missions are: scores, forecasts, the last run.

    Those of FILES; without FILES, what is deployed on the Prefect server of the settings, or missions/ where no server
    is set.

    Example: at status missions/
    """
    from anomaly_times.cli import render
    from anomaly_times.cli.status_view import StatusView
    from anomaly_times.scheduling.health import read_health

    now = opt.utc_now()
    with render.working("looking"), opt.MissionStores(source, url) as opened:
        deployed = None if files else _deployed()
        missions = opt.missions_from_files(files) if deployed is None else deployed.missions
        refused = _unknown_sources(missions)
        stores = opened.of([mission for mission in missions if mission.source not in refused])
        health = read_health(missions, stores, now=now, refused=refused)
    view = StatusView(tuple(health), now, deployed)
    render.show_report(view, opt.Output(output))
    if view.exit_code or (fail_on_lag and view.needs_help):
        raise typer.Exit(view.exit_code or EXIT_LATE)


def _deployed() -> Deployed | None:
    """What is deployed of our project, and how its runs ended; `None` where no server is set."""
    from anomaly_times.cli.status_view import Deployed
    from anomaly_times.scheduling.server import connect, is_set
    from anomaly_times.settings import load_settings

    settings = load_settings()
    if not is_set(settings.prefect):
        return None
    with connect(settings.prefect) as server:
        state = server.read_state(settings.project)
        ours = [one for one in state.found.values() if one.project == settings.project]
        return Deployed(
            tuple(one.deployed for one in ours if one.deployed),
            {one.name: one.error for one in ours if one.deployed is None},
            tuple(server.last_runs(settings.project, state)),
        )


def _unknown_sources(missions: Sequence[Mission]) -> dict[str, AnomalyTimesError]:
    """By its name, why a source that missions name cannot be had: that concerns those missions alone."""
    from anomaly_times.settings import load_settings

    settings, refused = load_settings(), dict[str, AnomalyTimesError]()
    for name in {mission.source for mission in missions} - {""}:
        try:
            settings.named_source(name)
        except UsageError as exc:
            refused[name] = MissionError(exc.message, hint=exc.hint)
    return refused
