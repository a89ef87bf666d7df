"""`at dashboards`: Grafana pages of missions and of what runs them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anomaly_times.cli import options as opt
from anomaly_times.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["dashboards"]


def dashboards(
    files: opt.Files = None,
    datasource: Annotated[
        str,
        opt.option(
            "uid or name of the Grafana data source to ask at first [Grafana's default].",
            opt.OUTPUT,
            "--datasource",
            metavar="NAME",
        ),
    ] = "",
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            help="Folder of the JSON files [dashboards].",
            rich_help_panel=opt.OUTPUT,
            metavar="FOLDER",
            show_default=False,
        ),
    ] = Path("dashboards"),
) -> None:
    """Write Grafana pages: an overview, any mission, the platform.

    Three JSON files for Grafana 11 and newer, to be provisioned or imported. The page of a mission draws the values of
    FILES, or of missions/; where there are none it takes the query of the values by hand.

    Example: at dashboards missions/ --out grafana/ --datasource VictoriaMetrics
    """
    from anomaly_times.cli import render
    from anomaly_times.outputs.dashboards import render_dashboards

    missions = opt.missions_from_files(files) if files or opt.DEFAULT_FILES.exists() else ()
    pages = render_dashboards(missions, datasource=datasource)
    _write(out, pages)
    render.say_lines([str(out / name) for name in pages])


def _write(folder: Path, pages: Mapping[str, str]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in pages.items():
            (folder / name).write_text(text)
    except OSError as exc:
        raise UsageError(
            f"the dashboards cannot be written to {folder}: {exc.strerror}", hint="name another folder: --out FOLDER"
        ) from exc
