"""`at rules`: alert rules of mission files for vmalert and Prometheus."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anomaly_times.cli import options as opt
from anomaly_times.errors import MissionError, UsageError

if TYPE_CHECKING:
    from anomaly_times.mission import Mission

__all__ = ["rules"]

EXIT_DIFFERS = 3
ALERTS = "Alerts"


def rules(
    files: opt.Files = None,
    source: Annotated[
        str,
        opt.option("Only missions of this source: a rule engine asks one.", opt.MISSIONS, "--source", metavar="NAME"),
    ] = "",
    platform: Annotated[
        bool,
        typer.Option(
            "--platform/--no-platform",
            help="Rules about the passes themselves, too [yes].",
            rich_help_panel=ALERTS,
            show_default=False,
        ),
    ] = True,
    keep_firing: Annotated[
        bool,
        typer.Option(
            "--keep-firing/--no-keep-firing",
            help="Write `keep_firing_for`, which vmalert before 1.92 and Prometheus before 2.42 refuse [yes].",
            rich_help_panel=ALERTS,
            show_default=False,
        ),
    ] = True,
    page: Annotated[str, opt.option("Label `severity` of what wakes somebody [page].", ALERTS, "--page")] = "page",
    ticket: Annotated[str, opt.option("Label `severity` of all else [ticket].", ALERTS, "--ticket")] = "ticket",
    out: Annotated[
        Path | None, opt.option("Write this file instead of stdout.", opt.OUTPUT, "--out", metavar="FILE")
    ] = None,
    check: Annotated[
        bool, opt.option("Write nothing; exit with 3 where the file of --out is another.", opt.OUTPUT, "--check")
    ] = False,
) -> None:
    """Write alert rules of missions for vmalert and Prometheus.

    A mission gets its alert, as `at backtest` counts it, and two for when it has no scores or its forecast runs out.

    Example: at rules missions/ --out rules.yaml
    """
    from anomaly_times.cli import render
    from anomaly_times.outputs.rules import Severities, render_rules, rule_groups

    if check and out is None:
        raise UsageError("--check compares with a file", hint="name it with --out FILE")
    opt.require_writable(out)
    missions = _of_source(opt.missions_from_files(files), source)
    groups = rule_groups(missions, platform=platform, severities=Severities(page, ticket))
    named = shlex.join(str(file) for file in files or [opt.DEFAULT_FILES])
    text = render_rules(groups, command=f"at rules {named}", keep_firing=keep_firing)
    if out is None:
        typer.echo(text, nl=False)
    elif check:
        if not out.is_file() or out.read_text(encoding="utf-8") != text:
            render.note(f"{out} is not what the missions say; write it anew without --check")
            raise typer.Exit(EXIT_DIFFERS)
        render.note(f"{out} is what the missions say")
    else:
        _write_whole(out, text)
        render.say(f"wrote {out}: {sum(len(group.rules) for group in groups):,} rules of {len(missions):,} missions")


def _of_source(missions: Sequence[Mission], name: str) -> list[Mission]:
    """The missions of a source, those that name none among them where it is the default; all, if no name is given.

    Raises:
        UsageError: there is no such source.
        MissionError: no mission is of it; or no name is given, and they are of several, which share no rule engine.
    """
    from anomaly_times.settings import load_settings

    settings = load_settings()
    if not name:
        several = {mission.source or settings.source for mission in missions}
        if len(several) > 1:
            sources = ", ".join(each or "the default one" for each in sorted(several))
            raise MissionError(
                f"the missions are of several sources: {sources}",
                hint="a rule engine asks one: write a file for each, with --source NAME",
            )
        return list(missions)
    named, _ = settings.named_source(name)
    usual = settings.source or (named if len(settings.sources) == 1 else "")
    found = [mission for mission in missions if (mission.source or usual) == named]
    if not found:
        raise MissionError(f"no mission is of the source {name!r}")
    return found


def _write_whole(file: Path, text: str) -> None:
    """Write a file in whole or not at all: a rule engine may read it at any time.

    Raises:
        UsageError: it cannot be written.
    """
    # A link stays one.
    target = file.resolve()
    part = target.with_name(f".{target.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(target)
    except OSError as exc:
        part.unlink(missing_ok=True)
        raise UsageError(f"{file} cannot be written: {exc.strerror}") from exc
