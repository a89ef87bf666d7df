"""`at status`: how missions are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from anomaly_times.cli import options as opt

if TYPE_CHECKING:
    from anomaly_times.cli.status_view import Deployed

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
        health = read_health(missions, opened.of(missions), now=now)
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
        found = server.read_state(settings.project).found.values()
        ours = [one for one in found if one.project == settings.project]
        return Deployed(
            tuple(one.deployed for one in ours if one.deployed),
            {one.name: one.error for one in ours if one.deployed is None},
            tuple(server.ended_runs()),
        )
