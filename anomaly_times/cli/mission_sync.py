"""`at mission plan`, `apply` and their kin: what is deployed on Prefect is what the files say."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anomaly_times.cli import options as opt
from anomaly_times.errors import MissionError, UsageError

if TYPE_CHECKING:
    from anomaly_times.mission import Mission
    from anomaly_times.plan import SavedPlan
    from anomaly_times.scheduling.server import PrefectServer
    from anomaly_times.settings import Settings
    from anomaly_times.stores import Store

__all__ = [
    "DONE",
    "MissionName",
    "Yes",
    "adopt",
    "apply",
    "ask",
    "delete",
    "list_",
    "may_ask",
    "open_server",
    "pause",
    "plan",
    "pull",
    "resume",
    "run",
    "show",
]

EXIT_REFUSED = 3
_NAMED = 5
"""Files that a message names, at most."""
EXIT_CHANGES = 6
"""Of `plan --detailed-exitcode`."""


class PlanForm(StrEnum):
    """How a plan is printed."""

    TABLE = "table"
    JSON = "json"
    MARKDOWN = "markdown"


Prune = Annotated[bool, typer.Option("--prune", help="Delete this project's missions that the files do not have.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
MissionName = Annotated[str, typer.Argument(metavar="NAME", help="Of a deployed mission.", show_default=False)]
PlanOutput = Annotated[
    PlanForm,
    typer.Option("--output", "-o", metavar="FORMAT", help="table, json or markdown [table].", show_default=False),
]


def plan(
    files: opt.Files = None,
    prune: Prune = False,
    detailed_exitcode: Annotated[
        bool, typer.Option("--detailed-exitcode", help="Exit with 6 where something would change.")
    ] = False,
    output: PlanOutput = PlanForm.TABLE,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="FILE", help="Keep the plan for `at mission apply FILE`.")
    ] = None,
) -> None:
    """Show what an apply would change on Prefect.

    Exits with 3 where a name is not ours to take.

    Example: at mission plan missions/ --prune
    """
    from anomaly_times import plan as plans
    from anomaly_times.cli import plan_views, render
    from anomaly_times.scheduling import sync

    wanted = opt.missions_from_files(files, checked=True)
    settings, server = open_server(prune=prune)
    with server, render.working("comparing"):
        made = sync.plan(server, wanted, project=settings.project, now=opt.utc_now(), prune=prune)
    if save is not None:
        _write(save, plans.saved(made))
    if output is PlanForm.MARKDOWN:
        sys.stdout.write(plan_views.to_markdown(made))
    else:
        render.show_report(plan_views.PlanView(made), opt.Output(output))
    if made.of(plans.Refuse):
        raise typer.Exit(EXIT_REFUSED)
    if detailed_exitcode and not made.empty:
        raise typer.Exit(EXIT_CHANGES)


def apply(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="FILES", help="Mission files, folders or globs, or one saved plan [missions/].", show_default=False
        ),
    ] = None,
    prune: Prune = False,
    yes: Yes = False,
) -> None:
    """Make Prefect run what the files say.

    Shows what changes, and asks. New missions, and those with a new query, step, source or labels, get a first
    forecast at once. It can be interrupted and run again.

    Example: at mission apply missions/ --prune --yes
    """
    from anomaly_times.cli import render
    from anomaly_times.cli.plan_views import PlanView
    from anomaly_times.monitoring import tells_alike
    from anomaly_times.plan import Delete, Update
    from anomaly_times.scheduling import sync

    may_ask(yes, first="at mission plan")
    settings, server = open_server(prune=prune)
    saved = _saved_plan(files)
    if saved and (saved.project != settings.project or prune):
        raise UsageError(f"the plan is for project {saved.project}, and says itself whether to prune")
    wanted = saved.wanted if saved else opt.missions_from_files(files, checked=True)
    prune, expect = (saved.prune, saved.fingerprint) if saved else (prune, "")
    project = settings.project
    with server:
        if not yes:
            made = sync.plan(server, wanted, project=project, now=opt.utc_now(), prune=prune)
            render.show_report(PlanView(made), opt.Output.TABLE)
            if not made.empty:
                ask("Apply this?")
            expect = expect or made.fingerprint
        done = sync.apply(
            server,
            wanted,
            project=project,
            clock=opt.utc_now,
            prune=prune,
            expect=expect,
            on_plan=lambda made: render.show_report(PlanView(made), opt.Output.TABLE) if yes else None,
            on_done=lambda what, whom: render.say(f"{DONE[what]} {whom}"),
        )
    stopped = [change.before for change in done.of(Delete) if change.before]
    stopped += [c.before for c in done.of(Update) if c.before and not tells_alike(c.before, c.target.mission)]
    _tell_stopped(stopped, settings)
    render.say("nothing had to change" if done.empty else "applied")


DONE = {"create": "created", "update": "updated", "patch": "corrected", "delete": "deleted", "start": "started"}
"""What an apply did, in words."""


def list_(output: opt.ReportOption = opt.Report.TABLE) -> None:
    """List the missions of this project that are deployed."""
    from anomaly_times.cli import render
    from anomaly_times.cli.plan_views import ListView

    settings, server = open_server()
    with server:
        found = server.read_state(settings.project).found.values()
    ours = [one for one in found if one.project == settings.project]
    render.show_report(ListView(settings.project, ours), opt.Output(output))


def show(name: MissionName, output: opt.ReportOption = opt.Report.TABLE) -> None:
    """Show one deployed mission, and its YAML."""
    from anomaly_times.cli import render
    from anomaly_times.cli.plan_views import ShowView
    from anomaly_times.scheduling import sync

    settings, server = open_server()
    with server:
        found = sync.our_mission(server, name, project=settings.project)
    render.show_report(ShowView(found), opt.Output(output))


def run(name: MissionName) -> None:
    """Forecast and detect a mission now, besides its schedules."""
    from anomaly_times.cli import render
    from anomaly_times.scheduling import sync

    settings, server = open_server()
    with server:
        sync.run_now(server, name, project=settings.project, now=opt.utc_now())
    render.say(f"started a forecast and a detection of {name}")


def pause(
    name: MissionName,
    duration: Annotated[
        str | None,
        typer.Option("--for", metavar="DURATION", help="Go on by itself after so long.", show_default=False),
    ] = None,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, for those who wonder.")] = "",
) -> None:
    """Let a mission rest.

    The runs of its packs skip it; it rests on when its file is applied.

    Example: at mission pause checkout-latency --for 2h --reason 'migration of the database'
    """
    from anomaly_times.cli import render
    from anomaly_times.deployed import Pause
    from anomaly_times.scheduling import sync

    length = opt.parse_window(duration, "--for")
    until = opt.utc_now().replace(microsecond=0) + length if length else None
    settings, server = open_server()
    with server:
        paused = sync.pause(server, name, Pause(until, reason), project=settings.project)
    _tell_stopped([paused.mission], settings)
    render.say(f"{name} is paused " + (f"until {until:%Y-%m-%d %H:%M:%S} UTC" if until else "until it is resumed"))


def resume(name: MissionName) -> None:
    """Let a paused mission go on."""
    from anomaly_times.cli import render
    from anomaly_times.scheduling import sync

    settings, server = open_server()
    with server:
        before = sync.our_mission(server, name, project=settings.project)
        sync.pause(server, name, None, project=settings.project)
    rested = before.deployed is not None and before.deployed.paused is not None
    render.say(f"{name} goes on with its next run" if rested else f"{name} is not paused")


def delete(
    name: MissionName,
    purge_series: Annotated[
        bool,
        typer.Option(
            "--purge-series", help="Also delete all forecasts and scores ever stored for it (VictoriaMetrics)."
        ),
    ] = False,
    yes: Yes = False,
) -> None:
    """Remove a mission from Prefect.

    Where its file stays, the next apply makes it again.
    """
    from anomaly_times.cli import render
    from anomaly_times.scheduling import sync
    from anomaly_times.stores.purge import purge_results

    may_ask(yes, first=f"at mission show {name}")
    settings, server = open_server()
    with server:
        found = sync.our_mission(server, name, project=settings.project)
        source = None
        if purge_series:
            if found.deployed is None:
                raise UsageError(
                    f"{found.error}: so where its series are is not known", hint="delete it without --purge-series"
                )
            _, source = settings.named_source(found.deployed.mission.source)
        if not yes:
            ask(f"Delete {name}" + (", and everything stored for it?" if purge_series else "?"))
        if source is not None:
            # First, for without the mission nobody could say a second time where its series are.
            render.say(f"deleted {purge_results(source, name)} from {source}")
        sync.delete(server, name, project=settings.project)
    if found.deployed is not None and not purge_series:
        _tell_stopped([found.deployed.mission], settings)
    render.say(f"deleted {name}")


def adopt(
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write the missions into this file.", show_default=False),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Remove the schedules of missions that are deployed by now.")
    ] = False,
) -> None:
    """Turn schedules made by hand into mission files.

    Missions keep the names that their results carry. First write the file, apply it, then run this with --yes: it
    removes the hand-made schedules of missions that are deployed by then, and no others.

    Example: at mission adopt --out missions/adopted.yaml
    """
    from anomaly_times.cli import render
    from anomaly_times.cli.views import counted
    from anomaly_times.scheduling.adopt import find_handmade, remove_adopted

    settings, server = open_server()
    with server:
        found = find_handmade(server.base_deployments(), settings)
        removed = remove_adopted(server, found, project=settings.project) if yes else []
    for line in (*found.left, *found.notes):
        render.note(line)
    missions = list(found.missions.values())
    _print_missions(missions, out)
    if out is not None:
        render.say(f"wrote {counted(len(missions), 'mission')} into {out}" if missions else "there is nothing to adopt")
    for name, schedules in found.schedules.items():
        if name in removed:
            render.note(f"removed {counted(len(schedules), 'hand-made schedule')} of {name}")
        elif name in found.missions and yes:
            render.note(f"{name} is not deployed yet, so its hand-made schedules stay")


def pull(
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="Write a file a mission into this folder.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over files that are there already.")] = False,
) -> None:
    """Print deployed missions as YAML, or write them as files.

    Example: at mission pull --out missions/
    """
    from anomaly_times.cli import render

    settings, server = open_server()
    with server:
        found = [f for f in server.read_state(settings.project).found.values() if f.project == settings.project]
    missions = [one.deployed.mission for one in found if one.deployed]
    if out is None:
        _print_missions(missions, None)
    else:
        files = _files_to_pull(missions, out, force=force)
        for mission, file in zip(missions, files, strict=True):
            _print_missions([mission], file, force=force)
        render.say(f"wrote {len(missions):,} files into {out}")
    for broken in (one for one in found if one.deployed is None):
        render.note(f"{broken.name} is left out: {broken.error}")


def _files_to_pull(missions: Sequence[Mission], out: Path, *, force: bool) -> list[Path]:
    """A file for each mission, from which it is loaded again as it is.

    Raises:
        UsageError: one is there already, or the defaults of the folder would change what is loaded.
    """
    from anomaly_times.loading import DEFAULTS_FILE

    files = [out / f"{mission.name}.yaml" for mission in missions]
    elsewhere = "pull into another folder, or print the missions, without --out"
    if out / DEFAULTS_FILE in files:
        raise UsageError(
            f"the file of a mission called like {DEFAULTS_FILE} would be taken for defaults", hint=elsewhere
        )
    if (out / DEFAULTS_FILE).exists():
        raise UsageError(f"{out / DEFAULTS_FILE} would be added to what each mission says", hint=elsewhere)
    there = [str(file) for file in files if file.exists()]
    if there and not force:
        named = ", ".join(there[:_NAMED]) + (f" and {len(there) - _NAMED} more" if len(there) > _NAMED else "")
        raise UsageError(
            f"{named}: there already, so nothing is written",
            hint="pull into another folder, or write over them with --force",
        )
    return files


def open_server(*, prune: bool = False) -> tuple[Settings, PrefectServer]:
    """The settings, and the Prefect server that they name.

    Raises:
        UsageError: none is named; or with `prune`, for a project that is none's in particular.
    """
    from anomaly_times.scheduling.server import connect
    from anomaly_times.settings import load_settings

    settings = load_settings()
    if prune and "project" not in settings.model_fields_set:
        raise UsageError(
            "--prune deletes missions of the project that the files do not have, and no project is set",
            hint="set `project:` in anomaly-times.yaml, or AT_PROJECT; other repositories may use the default one too",
        )
    return settings, connect(settings.prefect)


def _tell_stopped(missions: Sequence[Mission], settings: Settings) -> None:
    """Let rules about these missions fall silent at once; a note where that cannot be, and what was done stays done."""
    if not missions:
        return
    from anomaly_times.cli import render
    from anomaly_times.monitoring import tell_gone

    with opt.MissionStores("", "") as opened:
        stores: dict[str, Store] = {}
        for mission in missions:
            # Told of as not open.
            with suppress(UsageError, MissionError):
                stores |= opened.of([mission])
        for text in tell_gone(missions, stores, project=settings.project, at=opt.utc_now()):
            render.note(text)


def may_ask(yes: bool, *, first: str) -> None:
    """Nothing, where there is somebody to ask, or nothing to ask.

    Args:
        yes: whether `--yes` is given.
        first: the command that shows what is about to happen.

    Raises:
        UsageError: stdin is no terminal, and `--yes` is not given.
    """
    if not yes and not sys.stdin.isatty():
        raise UsageError("there is nobody to ask here", hint=f"add --yes, after a look at `{first}`")


def ask(question: str) -> None:
    """Nothing, where the answer is yes.

    Raises:
        typer.Abort: it is not.
    """
    typer.confirm(question, abort=True, err=True)


def _saved_plan(files: Sequence[Path] | None) -> SavedPlan | None:
    from anomaly_times.plan import read_saved

    if not files or len(files) != 1 or not files[0].is_file():
        return None
    try:
        return read_saved(files[0].read_bytes())
    except OSError as exc:
        raise UsageError(f"{files[0]} cannot be read: {exc.strerror}") from exc


def _print_missions(missions: Sequence[Mission], out: Path | None, *, force: bool = False) -> None:
    from anomaly_times.loading import dump_mission

    text = "---\n".join(dump_mission(mission) for mission in missions)
    if out is None:
        sys.stdout.write(text)
    elif missions:
        _write(out, text.encode(), over=force)


def _write(file: Path, body: bytes, *, over: bool = True) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb" if over else "xb") as out:
            out.write(body)
    except FileExistsError as exc:
        raise UsageError(f"{exc.filename} is there already, and is not touched", hint="name another one") from exc
    except OSError as exc:
        raise UsageError(f"{file} cannot be written: {exc.strerror}") from exc
