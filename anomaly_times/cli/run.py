"""`at run`: missions kept going in one process."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from anomaly_times.cli import options as opt

if TYPE_CHECKING:
    from anomaly_times.scheduling.local import Happening, PassDone

__all__ = ["run", "until_signal"]


def run(
    files: opt.Files = None,
    source: opt.SourceName = "",
    url: opt.Url = "",
    jobs: opt.Jobs = None,
) -> None:
    """Keep missions going in this process, until Ctrl-C or SIGTERM.

    Each runs at its cadence, without Prefect. New missions are forecast at once, changed ones with the first point
    after the change; files are read again when they change. One line a pass on stderr.

    Example: at run missions/
    """
    from anomaly_times.cli import render
    from anomaly_times.engine import Places
    from anomaly_times.scheduling.local import Runner, keep_going
    from anomaly_times.settings import load_settings

    settings, paths = load_settings(), files or [opt.DEFAULT_FILES]

    def tell(happening: Happening) -> None:
        render.log(_line(happening))

    with opt.MissionStores(source, url) as stores, until_signal() as stop:
        histories = Places(stores.sources, settings.state_url, settings.history_cache_bytes).histories()
        with Runner(
            *(stores.of, tell), project=settings.project, jobs=jobs or opt.default_jobs(), histories=histories
        ) as runner:
            keep_going(runner, paths, lambda: opt.missions_from_files(files), tell=tell, stop=stop)
            render.log("stopping: what is being computed is finished and stored; once more ends at once")
        render.log("stopped")


@contextmanager
def until_signal(at_second: Callable[[], object] = lambda: None) -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; the second ends the process as if nobody listened.

    Args:
        at_second: called right before that end, in the main thread.
    """
    stop = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def first(*_: object) -> None:
        stop.set()
        for number in before:
            signal.signal(number, second)

    def second(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        at_second()
        signal.raise_signal(number)

    for number in before:
        signal.signal(number, first)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _line(happening: Happening) -> str:
    """One line about what happened."""
    from anomaly_times.scheduling.local import Missed, PassDone, Refused

    match happening:
        case PassDone():
            return _pass_line(happening)
        case Refused(error):
            hint = f" ({error.hint})" if error.hint else ""
            text = error.message.replace("\n", "; ")
            return f"the changed files cannot run, so what ran goes on: {text}{hint}"
        case Missed(slug, reason):
            return f"{slug} was left out: {reason}"
    parts = [f"{len(names)} {what}" for what in ("new", "changed", "gone") if (names := getattr(happening, what))]
    waits = [
        f"; the forecasts of {name} restart at {since:%Y-%m-%d %H:%M} UTC, when those of the longer step have ended"
        for name, since in happening.waits.items()
    ]
    return f"running {_missions(happening.count)}" + (f": {', '.join(parts)}" if parts else "") + "".join(waits)


_SHOWN = 5
"""Missions of each kind that a line names."""


def _missions(n: int) -> str:
    return f"{n:,} mission" if n == 1 else f"{n:,} missions"


def _pass_line(done: PassDone) -> str:
    from anomaly_times.cli.views import first_line
    from anomaly_times.outcome import outcome_of
    from anomaly_times.scoring import format_score

    outcomes = [outcome_of(result) for result in done.results]
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    points = sum(outcome.points for outcome in outcomes if outcome.error is None)
    what = "first forecast" if done.first else f"{done.kind} {done.cadence}"
    parts = [f"{what}: {_missions(len(outcomes) - len(failed))}, {points:,} points in {done.took.total_seconds():.1f}s"]
    scored = sorted((o for o in outcomes if o.worst), key=lambda o: -o.worst.score if o.worst else 0.0)
    for i, outcome in enumerate(scored[:_SHOWN]):
        # The highest is told anyway, so that a reader sees how far from 1 all is.
        worst = outcome.worst
        if worst is not None and (i == 0 or worst.score > 1):
            reason = f" ({worst.reason})" if worst.reason else ""
            parts.append(f"{outcome.mission.name} {format_score(worst.score)}{reason} {worst.labels}")
    parts += [f"FAILED {o.mission.name}: {first_line(o.error.message)}" for o in failed[:_SHOWN] if o.error is not None]
    if len(failed) > _SHOWN:
        parts.append(f"and {len(failed) - _SHOWN} more failed")
    return "; ".join(parts)
