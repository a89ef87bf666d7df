"""`at mission …`: missions as files, and what of them is deployed on Prefect."""

from __future__ import annotations

import typer

from anomaly_times.cli import mission_files as files
from anomaly_times.cli import mission_rebase
from anomaly_times.cli import mission_sync as sync
from anomaly_times.cli.options import GroupedHelp

__all__ = ["mission_app"]

mission_app = typer.Typer(
    name="mission",
    help="Missions as code: check files, plan and apply changes.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

for _command in (
    files.init,
    files.validate,
    files.schema,
    sync.plan,
    sync.apply,
    sync.list_,
    sync.show,
    sync.run,
    mission_rebase.rebase,
    sync.pause,
    sync.resume,
    sync.delete,
    sync.adopt,
    sync.pull,
):
    mission_app.command(_command.__name__.rstrip("_"), cls=GroupedHelp)(_command)
