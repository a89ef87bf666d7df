"""`at mission validate`, `schema` and `init`: mission files, before anything is deployed."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from anomaly_times.cli import options as opt
from anomaly_times.errors import UsageError

__all__ = ["init", "named_files", "schema", "validate"]

EXIT_PROBLEMS = 3
EXIT_AWAY = 4
WHAT, CHECKS = "What to look at", "Checks"


class Form(StrEnum):
    """How problems are printed."""

    TABLE = "table"
    JSON = "json"
    GITHUB = "github"


class SchemaForm(StrEnum):
    """How the fields of a mission are described."""

    JSON = "json"
    MARKDOWN = "markdown"


class FailOn(StrEnum):
    """What makes validation fail."""

    WARNING = "warning"
    ERROR = "error"


def validate(
    files: opt.Files = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Ask no server.", rich_help_panel=CHECKS, show_default=False)
    ] = False,
    source: opt.SourceName = "",
    url: opt.Url = "",
    fail_on: Annotated[
        FailOn,
        typer.Option(
            "--fail-on",
            help="warning or error: what makes the command fail [error].",
            rich_help_panel=CHECKS,
            metavar="SEVERITY",
            show_default=False,
        ),
    ] = FailOn.ERROR,
    changed_since: Annotated[
        str,
        typer.Option(
            "--changed-since",
            help="Look only at files that changed since this Git revision, and new ones.",
            rich_help_panel=WHAT,
            metavar="REV",
            show_default=False,
        ),
    ] = "",
    output: Annotated[
        Form,
        typer.Option(
            "--output",
            "-o",
            help="table, json, or github: annotations of a pull request [table].",
            rich_help_panel=opt.OUTPUT,
            metavar="FORMAT",
            show_default=False,
        ),
    ] = Form.TABLE,
) -> None:
    """Say what is wrong in mission files.

    Without --offline the sources of the missions are asked too: unknown metrics, gaps, counters without rate, cost.
    --source and --url go for missions that name no source. Exits 3 with problems, 4 when a source is away.

    Example: at mission validate missions/ --output github --changed-since origin/main
    """
    from anomaly_times.checks import at_or_above, check_missions
    from anomaly_times.checks.changed import changed_files, only_changed
    from anomaly_times.cli import render
    from anomaly_times.cli.check_views import CheckView
    from anomaly_times.loading import load_missions
    from anomaly_times.settings import load_settings

    loading = load_missions(named_files(files))
    if changed_since:
        loading = only_changed(loading, changed_files(changed_since))
    known = load_settings().sources
    missions = [loaded.mission for loaded in loading.missions]
    sources = None if offline and not known else known
    with opt.MissionStores(source, url) as opened, render.progress("checking", len(missions)) as advance:
        reachable = [mission for mission in missions if not mission.source or mission.source in known]
        stores = None if offline else opened.of(reachable)
        report = check_missions(loading, now=opt.utc_now(), sources=sources, stores=stores, advance=advance)
    view = CheckView(report, asked=not offline)
    if output is Form.JSON:
        render.say_json(view.document())
    elif output is Form.GITHUB:
        render.say_lines(view.annotations())
    else:
        render.say_lines(view.lines())
    for line in view.notes():
        render.note(line)
    if at_or_above(report.problems, fail_on.value):
        raise typer.Exit(EXIT_PROBLEMS)
    if report.unchecked:
        raise typer.Exit(EXIT_AWAY)


def named_files(files: list[Path] | None) -> list[Path]:
    """What the user named, or `missions/`.

    Raises:
        UsageError: nothing is named, and there is no such folder.
    """
    if not files and not opt.DEFAULT_FILES.exists():
        raise UsageError(f"there is no {opt.DEFAULT_FILES}/ here, and no mission file is named", hint=opt.NO_FILES)
    return files or [opt.DEFAULT_FILES]


def schema(
    output: Annotated[
        SchemaForm,
        typer.Option(
            "--output",
            "-o",
            help="json (for editors), or markdown [json].",
            rich_help_panel=opt.OUTPUT,
            metavar="FORMAT",
            show_default=False,
        ),
    ] = SchemaForm.JSON,
) -> None:
    """Print the JSON Schema of mission files.

    Editors complete and check mission files with it.

    Example: at mission schema > mission.schema.json; the first line of a mission file then is
    `# yaml-language-server: $schema=mission.schema.json`.
    """
    from anomaly_times.cli import render
    from anomaly_times.schema import file_schema, reference

    if output is SchemaForm.JSON:
        render.say_json(file_schema(), indent=2)
    else:
        typer.echo(reference(), nl=False)


def init(
    name: Annotated[
        str, typer.Argument(help="Name of the mission.", metavar="NAME", show_default=False, rich_help_panel=WHAT)
    ] = "",
    promql: Annotated[
        str,
        typer.Option(
            "--promql", "-q", help="The query to watch.", rich_help_panel=WHAT, metavar="QUERY", show_default=False
        ),
    ] = "",
    preset: Annotated[
        str,
        typer.Option(
            "--preset",
            help="Instead of NAME and --promql, a set of missions for what is found there: node-exporter, red, "
            "kubernetes or victoriametrics.",
            rich_help_panel=WHAT,
            metavar="PRESET",
            show_default=False,
        ),
    ] = "",
    source: opt.SourceName = "",
    url: opt.Url = "",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Write this file [missions/NAME.yaml].",
            rich_help_panel=opt.OUTPUT,
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a first mission file, fitted to the live data.

    Looks at the query's series: how often they are scraped, which seasons they follow, how they vary. Every suggestion
    comes with a comment saying why. A file that is there already is never touched.

    Example: at mission init checkout-errors --promql 'sum by (service) (rate(http_requests_total{code=~"5.."}[5m]))'
    """
    from anomaly_times.cli import render
    from anomaly_times.stores import open_store
    from anomaly_times.suggest import suggest_mission, suggest_preset, write_new

    if bool(preset) == bool(name and promql) or (preset and (name or promql)):
        raise UsageError("init takes either NAME and --promql, or --preset", hint="see `at mission init --help`")
    settings, _, described = opt.open_source(source, url)
    file = out or opt.DEFAULT_FILES / f"{name or preset}.yaml"
    if file.exists():
        raise UsageError(f"{file} is there already, and is not touched", hint="name another one with --out")
    with open_store(described, state=settings.state_url) as store, render.working(f"looking at {store.name}"):
        if preset:
            text, skipped = suggest_preset(preset, store, source=source, now=opt.utc_now())
        else:
            text, skipped = suggest_mission(name, promql, store, source=source, now=opt.utc_now()), []
    write_new(file, text)
    render.say(f"wrote {file}; next: `at mission validate {file}`")
    for line in skipped:
        render.note(line)
