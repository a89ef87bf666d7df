"""`at mission rebase`: a service has another level for good, and its mission's file says since when."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anomaly_times.cli import mission_sync as sync_cli
from anomaly_times.cli import options as opt
from anomaly_times.errors import MissionError, UsageError

if TYPE_CHECKING:
    from anomaly_times.cli.views import Cell
    from anomaly_times.loading import LoadedMission
    from anomaly_times.mission import Mission
    from anomaly_times.plan import Plan
    from anomaly_times.scheduling.server import PrefectServer

__all__ = ["rebase"]

FIELD = ("forecast", "rebase")


def rebase(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of a mission in the files.", show_default=False)],
    files: opt.Files = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--since",
            metavar="TIME",
            help="When the level changed: so long ago (2h), or a time in ISO 8601.",
            show_default=False,
        ),
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Take the time out of the file again.")] = False,
    apply: Annotated[
        bool, typer.Option("--apply", help="Apply this mission to Prefect, too, and forecast it at once.")
    ] = False,
    yes: sync_cli.Yes = False,
    output: opt.ReportOption = opt.Report.TABLE,
) -> None:
    """Say that a service has another level for good.

    Writes `forecast.rebase` into the mission's file, and nothing else of it changes. Forecasts then learn the level
    from what came since that time, and the rhythm from what is older, too. With --apply it asks only where more than
    that would change.

    Example: at mission rebase checkout-latency --since 2h --apply
    """
    from anomaly_times.cli import render
    from anomaly_times.durations import iso_utc
    from anomaly_times.scheduling import sync

    now = opt.utc_now()
    if (since is None) != clear:
        raise UsageError("rebase takes either --since TIME or --clear", hint="see `at mission rebase --help`")
    edit = _edit(_find(name, files), opt.parse_since(since, now=now) if since is not None else None, now=now)
    table = output is opt.Report.TABLE
    if table:
        render.say_lines(edit.diff())
    done, starts = None, None
    if not apply:
        edit.write()
    else:
        settings, server = sync_cli.open_server()
        done = []

        def tell(what: str, whom: str) -> None:
            done.append({"action": what, "subject": whom})
            if table:
                render.say(f"{sync_cli.DONE[what]} {whom}")

        with server:
            made = _agreed(server, edit.wanted, project=settings.project, yes=yes, table=table)
            # Before the server: what is deployed and stands in no file would be undone by the next apply.
            edit.write()
            made = sync.apply(
                server,
                [edit.wanted],
                project=settings.project,
                clock=opt.utc_now,
                expect=made.fingerprint,
                on_done=tell,
            )
        starts = _start_of_forecast(made, edit.wanted)
    if table:
        render.say(edit.summary(applied=apply, starts=starts))
    else:
        render.say_json({**edit.document(), "applied": done, "forecast_at": starts and iso_utc(starts)})


@dataclass(frozen=True)
class _Edit:
    """What the file of a mission was and will be, and the mission that it then holds."""

    file: Path
    old: bytes
    new: bytes
    before: Mission
    wanted: Mission

    def write(self) -> None:
        """Change the file, where it does not say so already: the whole of it, or nothing.

        Raises:
            UsageError: it cannot be written.
        """
        from shutil import copymode

        if self.new == self.old:
            return
        # A link stays one.
        file = self.file.resolve()
        part = file.with_name(f".{file.name}.part")
        try:
            part.write_bytes(self.new)
            copymode(file, part)
            part.replace(file)
        except OSError as exc:
            part.unlink(missing_ok=True)
            raise UsageError(f"{self.file} cannot be written: {exc.strerror}") from exc

    def unified(self) -> list[str]:
        """The change as a unified diff, line by line."""
        from difflib import unified_diff

        old, new = (raw.decode("utf-8-sig").splitlines() for raw in (self.old, self.new))
        return list(unified_diff(old, new, str(self.file), str(self.file), lineterm=""))

    def diff(self) -> list[Cell]:
        """The same for a terminal."""
        styles = {"+": "good", "-": "bad", "@": "muted"}
        return [[(line, styles.get(line[:1], ""))] for line in self.unified()]

    def summary(self, *, applied: bool, starts: datetime | None) -> str:
        """What is so now, and what comes next: an apply, or a forecast that starts then."""
        from anomaly_times.durations import iso_utc

        name, at = self.wanted.name, self.wanted.forecast.rebase
        told = f"{self.file}: {name} learns its level from what came since {iso_utc(at)}" if at else ""
        told = told or f"{self.file}: {name} is not rebased"
        if not applied:
            return f"{told}; next: `at mission apply {self.file}`"
        return f"{told}; a forecast with the next point starts at {starts:%H:%M:%S} UTC" if starts else told

    def document(self) -> dict[str, Any]:
        """All of it for JSON."""
        from anomaly_times.durations import iso_utc

        before, after = (mission.forecast.rebase for mission in (self.before, self.wanted))
        return {
            "schema": 1,
            "kind": "rebase",
            "mission": self.wanted.name,
            "file": str(self.file),
            "before": before and iso_utc(before),
            "rebase": after and iso_utc(after),
            "diff": "".join(f"{line}\n" for line in self.unified()),
        }


def _find(name: str, files: list[Path] | None) -> LoadedMission:
    """The mission of that name in the files.

    Raises:
        MissionError: there is none, or more than one, or it has problems.
        UsageError: a file that is not there.
    """
    from difflib import get_close_matches

    from anomaly_times.cli.mission_files import named_files
    from anomaly_times.loading import load_missions

    named = named_files(files)
    loading = load_missions(named)
    if wrong := [str(problem) for problem in loading.problems if problem.mission == name]:
        raise MissionError("\n".join([f"the mission {name} has problems", *wrong]), hint="correct its file first")
    for loaded in loading.missions:
        if loaded.mission.name == name:
            return loaded
    where = ", ".join(str(path) for path in named)
    near = get_close_matches(name, [loaded.mission.name for loaded in loading.missions], 1)
    # What cannot be read may hold it.
    hint = "`at mission validate` tells what is wrong in these files" if loading.problems else "is it in other FILES?"
    raise MissionError(f"there is no mission {name!r} in {where}", hint=f"did you mean {near[0]!r}?" if near else hint)


def _edit(loaded: LoadedMission, at: datetime | None, *, now: datetime) -> _Edit:
    """What becomes of the mission's file when its level counts from `at` on, or (`None`) from no time.

    Raises:
        MissionError: the mission would have problems.
        UsageError: there is nothing to learn from, or the file cannot say it for this mission alone.
    """
    from anomaly_times.durations import format_duration, iso_utc
    from anomaly_times.loading import Loading
    from anomaly_times.yamledit import remove_value, set_value
    from anomaly_times.yamlfile import YamlError, read_documents

    mission, own = loaded.mission, loaded.layers[0]
    wanted = mission.model_copy(update={"forecast": mission.forecast.model_copy(update={"rebase": at})})
    if at is not None and at <= mission.history_grid(now).start:
        lookback = format_duration(mission.forecast.lookback)
        raise UsageError(
            f"--since: all that a forecast of {mission.name} reads, {lookback}, lies after {iso_utc(at)}",
            hint="it knows that level only, so there is nothing to rebase",
        )
    if problems := opt.errors_of(Loading((replace(loaded, mission=wanted),), (), ())):
        lines = [f"{problem}" + (f" ({problem.hint})" if problem.hint else "") for problem in problems]
        raise MissionError("\n".join([f"the mission {mission.name} has problems", *lines]))
    if any("for_each" in layer.data for layer in loaded.layers):
        raise UsageError(
            f"{loaded.where()}: {mission.name} is one of those that a template makes (`for_each`)",
            hint="set `forecast.rebase` there by hand, for all of them, or write this one as a mission of its own",
        )
    if at is None and mission.forecast.rebase is not None and loaded.inherits(*FIELD):
        raise UsageError(
            f"{loaded.where(*FIELD)}: {mission.name} takes its rebase from these defaults",
            hint="delete it there by hand, for all missions that take it over",
        )
    file = Path(own.file)
    try:
        old = new = file.read_bytes()
        begun = [document.line for document in read_documents(old)]
        if own.document.line not in begun:
            raise YamlError("the file has changed since it was read", own.document.line)
        place = begun.index(own.document.line), (*own.path, *FIELD)
        if at is not None:
            new = set_value(old, *place, iso_utc(at))
        elif mission.forecast.rebase is not None:
            new = remove_value(old, *place)
    except YamlError as exc:
        hint = f"write `rebase: {iso_utc(at)}` below `forecast:` by hand" if at else "delete `rebase:` by hand"
        raise UsageError(f"{file}:{exc.line}: {exc.message}", hint=hint) from exc
    except OSError as exc:
        raise UsageError(f"{file} cannot be read: {exc.strerror}") from exc
    return _Edit(file, old, new, mission, wanted)


def _agreed(server: PrefectServer, wanted: Mission, *, project: str, yes: bool, table: bool) -> Plan:
    """The plan for this mission, shown, and agreed to where more than its level would change.

    Raises:
        UsageError: more would change, and there is nobody to ask.
        typer.Abort: the answer is no.
    """
    from anomaly_times.cli import render
    from anomaly_times.cli.plan_views import PlanView
    from anomaly_times.plan import Keep, Refuse, Update
    from anomaly_times.scheduling import sync

    made = sync.plan(server, [wanted], project=project, now=opt.utc_now())
    # The plan of a folder tells of missions that the files lack; here that is every other one.
    ours = replace(made, changes=tuple(change for change in made.changes if change.name == wanted.name))
    if table:
        render.show_report(PlanView(ours), opt.Output.TABLE)
    [change] = ours.changes
    expected = isinstance(change, (Keep, Refuse)) or (
        isinstance(change, Update)
        and not change.drift
        and {field.field for field in change.fields} <= {".".join(FIELD)}
    )
    if not expected or (made.schedules and not isinstance(change, Refuse)):
        if not (yes or table):
            raise UsageError("more than the level would change", hint="add --yes, after a look at `at mission plan`")
        sync_cli.may_ask(yes, first="at mission plan")
        if not yes:
            sync_cli.ask("More than the level changes. Apply this?")
    return made


def _start_of_forecast(made: Plan, wanted: Mission) -> datetime | None:
    """When the first forecast with the new level begins, in whole seconds; `None` where nothing restarts."""
    from anomaly_times.plan import Create, Update, first_cutoff

    fresh: list[Create | Update] = [*made.of(Create), *(update for update in made.of(Update) if update.restarts)]
    starts = [first_cutoff(wanted, change.target.since) for change in fresh if change.name == wanted.name]
    resting = any(deployed.mission.name == wanted.name for deployed in made.paused)
    return starts[0] + wanted.offset if starts and not resting else None
