"""One pass over the missions of files: what `at forecast FILES` and `at detect FILES` do."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from anomaly_times.cli import options as opt
from anomaly_times.cli import render
from anomaly_times.cli.options import Output
from anomaly_times.cli.pass_views import PassView
from anomaly_times.conventions import Kind
from anomaly_times.engine import EngineName, Job, Places, open_engine
from anomaly_times.errors import UsageError
from anomaly_times.monitoring import About
from anomaly_times.settings import load_settings

__all__ = ["pass_over_files"]

logger = logging.getLogger(__name__)


def pass_over_files(kind: Kind, files: Sequence[Path] | None, params: Mapping[str, Any]) -> None:
    """Forecast or score all missions of `files`, many at once; show a line for each.

    Args:
        kind: what to do with them.
        files: files, folders and globs; `missions/` where there are none.
        params: the command's other parameters by name.

    Raises:
        typer.Exit: with the highest exit code among the errors of missions, after all are shown.
        AnomalyTimesError: what stopped the whole before it began.
    """
    form = opt.output_format(params["output"], params["out"])
    if form not in (Output.TABLE, Output.JSON):
        raise UsageError(f"--output {form} is for the series of one query", hint="missions have table and json")
    window = opt.parse_window(params.get("last"), "--last")
    now = opt.parse_time(params["at"], now=opt.utc_now())
    missions = opt.missions_from_files(files, hint="name FILES, or a query by --promql")
    doing = {"forecast": "forecasting", "detect": "scoring"}[kind]
    settings = load_settings()
    with opt.MissionStores(params["source"], params["url"]) as opened:
        stores = opened.of(missions)
        job = Job(kind, missions, now, window=window, write=not params["dry_run"], about=About(settings.project))
        places = Places(opened.sources, settings.state_url, settings.history_cache_bytes)
        engine: EngineName = params["on"].value if params["on"] is not None else settings.engine
        if engine == "local" and params["ray_address"]:
            raise UsageError("--ray-address goes with --on ray", hint="or with `engine: ray` in the settings")
        if engine == "ray" and params["profile"]:
            raise UsageError("--profile sees this machine alone", hint="--on local")
        address = params["ray_address"] or settings.ray_address
        with (
            open_engine(engine, places, address=address, jobs=params["jobs"]) as running,
            render.progress(doing, len(missions)) as advance,
        ):
            ran = running.run(job, stores, on_done=advance)
    for text in ran.untold:
        logger.warning("%s", text)
    view = PassView(kind, now, ran.outcomes, ran.written)
    render.show_report(view, form, out=params["out"])
    if view.exit_code:
        raise typer.Exit(view.exit_code)
