"""`at up`: VictoriaMetrics, Prefect, a worker and the deployments on this machine."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anomaly_times.cli import options as opt
from anomaly_times.cli.run import until_signal

if TYPE_CHECKING:
    from anomaly_times.scheduling.server import EndedRun, PrefectServer

__all__ = ["RunLog", "up"]

_LOOK = 5.0
"""Seconds between two looks at what runs."""
_LATE = timedelta(minutes=1)
"""How much later than its end a run may become known: its own process says when that was."""


class RunLog:
    """The runs that end from `since` on, each told once."""

    def __init__(self, server: PrefectServer, *, since: datetime) -> None:
        self._server = server
        self._since = self._from = since
        self._told: frozenset[str] = frozenset()

    def new(self) -> list[EndedRun]:
        """Those that ended and were not told yet, oldest first.

        Raises:
            PrefectError: the server is away or busy; the next call tells them.
        """
        found = self._server.ended_runs(since=self._from)
        fresh = [run for run in reversed(found) if run.id not in self._told]
        self._told = frozenset(run.id for run in found)
        if found:
            self._from = max(self._since, found[0].ended - _LATE)
        return fresh


def up(
    data: Annotated[
        Path, typer.Option("--data", metavar="FOLDER", help="Where the servers keep their data and logs.")
    ] = Path(".anomaly-times/up"),
    prefect_port: Annotated[
        int, typer.Option("--prefect-port", min=1, max=65535, metavar="PORT", help="Of Prefect's server, on loopback.")
    ] = 4200,
    victoria_port: Annotated[
        int, typer.Option("--victoria-port", min=1, max=65535, metavar="PORT", help="Of VictoriaMetrics, on loopback.")
    ] = 8428,
) -> None:
    """Start what missions need on this machine; Ctrl-C stops it.

    VictoriaMetrics (where the settings name no source), a Prefect server on SQLite, a process worker and the two
    deployments. What answers already on its port is used, and left running at the end.

    Example: at up --data /var/lib/anomaly-times
    """
    from anomaly_times.cli import render
    from anomaly_times.errors import PrefectError
    from anomaly_times.scheduling.server import PrefectServer
    from anomaly_times.scheduling.stack import Stack, StackOptions, bring_up
    from anomaly_times.settings import load_settings

    options = StackOptions(data, prefect_port, victoria_port)
    settings, stack = load_settings(), Stack()
    with until_signal(stack.kill) as stop:
        with stack, PrefectServer(options.api_url) as server:
            if bring_up(stack, options, settings, tell=render.log, stop=stop):
                render.log("all is up; Ctrl-C stops it")
            ended = RunLog(server, since=opt.utc_now())
            while not stop.wait(_LOOK):
                stack.check()
                try:
                    runs = ended.new()
                except PrefectError as exc:
                    render.log(exc.message)
                    continue
                for run in runs:
                    render.log(f"{run.about}: {run.state}" + (f": {run.message}" if run.message else ""))
            render.log("stopping; once more ends all at once")
        render.log("stopped")
