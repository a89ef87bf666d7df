"""`at backtest --changed-since`: what a pull request touched, before and after."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from anomaly_times.backtest import Trial, Version
from anomaly_times.checks.changed import changed_files, files_before, only_changed
from anomaly_times.cli.backtest_views import BacktestView, trial_entry, verdict_cells
from anomaly_times.cli.plan_views import shown
from anomaly_times.cli.render import Section
from anomaly_times.cli.views import JSON_SCHEMA, Cell, beside, counted, first_line, stamp
from anomaly_times.errors import MissionError
from anomaly_times.loading import DEFAULTS_FILE, Loading, load_missions
from anomaly_times.plan import field_changes

__all__ = ["ChangesView", "Touched", "touched_missions"]

_MOST_CHARACTERS = 20_000
"""Of a table: two of them and the notes fit into a comment on GitHub (65,536)."""
_LONGEST = 300
_MOST_NOTES = 30


@dataclass(frozen=True)
class Touched:
    """A mission that differs from what a revision had; `remark` says why its old version is not there."""

    version: Version
    remark: str = ""

    @property
    def kind(self) -> str:
        """`new`, `changed` or `deleted`."""
        if self.version.after is None:
            return "deleted"
        return "changed" if self.version.before is not None or self.remark else "new"


def touched_missions(paths: Sequence[Path], revision: str) -> tuple[Touched, ...]:
    """The missions that files say otherwise than when this line of work left `revision`, new and deleted ones too.

    They are compared as they are loaded: an edit of defaults touches all that take them over, a comment touches none.

    Raises:
        UsageError: no Git, a revision that it does not know, or a path that is not there or outside the repository.
        MissionError: a file that changed has problems.
    """
    changes = changed_files(revision)
    everything = load_missions(paths)
    if problems := only_changed(everything, changes).problems:
        lines = [f"{problem}" + (f" ({problem.hint})" if problem.hint else "") for problem in problems]
        raise MissionError("\n".join(["the mission files have problems", *lines]))
    with TemporaryDirectory() as folder:
        old = files_before(revision, paths, Path(folder))
        earlier = load_missions(old) if old else Loading((), (), ())
        # Of a mission that was broken nothing but its name is known, and often not even that.
        broken = {problem.mission: problem.message for problem in earlier.problems if problem.mission}
        unread = {
            str(Path(problem.where.file).relative_to(folder)): problem.message
            for problem in earlier.problems
            if not problem.mission and Path(problem.where.file).is_relative_to(folder)
        }
    before = {loaded.mission.name: loaded.mission for loaded in earlier.missions}
    found = []
    for loaded in everything.missions:
        mission, file = loaded.mission, Path(loaded.file).resolve()
        was = before.pop(mission.name, None)
        places = (file, file.parent / DEFAULTS_FILE)
        why = broken.get(mission.name) or next(
            (message for each in places if (message := unread.get(str(each.relative_to(changes.root))))), ""
        )
        if was != mission:
            remark = f"before it did not load: {why}" if was is None and why else ""
            found.append(Touched(Version(was, mission), remark))
    return (*found, *(Touched(Version(mission, None)) for mission in before.values()))


@dataclass(frozen=True, eq=False)
class ChangesView:
    """Before and after of every mission that was touched, side by side; `pairs` are the trials of each."""

    revision: str
    touched: tuple[Touched, ...]
    pairs: tuple[tuple[Trial | None, Trial | None], ...]

    @property
    def exit_code(self) -> int:
        """0, or the highest exit code among the errors of missions as they are."""
        return max((each.error.exit_code for _, each in self.pairs if each and each.error), default=0)

    @property
    def broken(self) -> list[str]:
        """What missions as they are ask for in `backtest:` and do not get, and those that could not be replayed."""
        return _broken([after for _, after in self.pairs if after is not None])

    def sections(self) -> list[Section]:
        """What is printed, in order."""
        if not self.touched:
            return [Section(f"No mission changed since {self.revision}", ("nothing was replayed",))]
        return [self._figures(), *self._fields()]

    def _figures(self) -> Section:
        trials = [trial for pair in self.pairs for trial in pair if trial is not None]
        judged = any(trial.verdict is not None for trial in trials)
        start, end = min(each.grid.start for each in trials), max(each.grid.end for each in trials)
        title = f"{counted(len(self.touched), 'mission')} changed since {self.revision}"
        columns = ["<mission", "", ">alerts a week"]
        columns += [">found", ">false alarms", ">told after"] if judged else []
        columns += [">MASE", ">in band", "remarks"]
        rows = [
            tuple(self._row(each, pair, judged=judged)) for each, pair in zip(self.touched, self.pairs, strict=True)
        ]
        fitting, left = _fitting(rows)
        lines = [f"replayed from {stamp(start)} to {stamp(end)} UTC", self._total()]
        return Section(title, tuple(filter(None, (*lines, left))), tuple(columns), tuple(fitting))

    def _total(self) -> str:
        before, after = (
            sum(trial.alerts.per_week for trial in side if trial is not None and trial.alerts is not None)
            for side in zip(*self.pairs, strict=True)
        )
        return f"alerts a week: {before:.2f} before, {after:.2f} after"

    def _row(self, touched: Touched, pair: tuple[Trial | None, Trial | None], *, judged: bool) -> Iterator[Cell]:
        before, after = pair
        yield touched.version.newest.name
        yield touched.kind
        yield _beside(before, after, lambda trial: _figure(trial.alerts.per_week if trial.alerts is not None else None))
        if judged:
            sides = [verdict_cells([each]) if each is not None and each.scores is not None else None for each in pair]
            for k in range(3):
                yield beside(*(str(side[k]) if side is not None else None for side in sides))
        yield _beside(before, after, lambda trial: _figure(trial.accuracy.mase if trial.accuracy is not None else None))
        yield _beside(
            before, after, lambda trial: _percent(trial.accuracy.coverage if trial.accuracy is not None else None)
        )
        errors = [
            f"{what}{first_line(each.error.message)}"
            for what, each in (("before: ", before), ("", after))
            if each is not None and each.error is not None
        ]
        said = "what runs is the same" if touched.version.alike else touched.remark
        bad = (*errors, *(after.broken if after is not None else ()))
        yield [(_cut("; ".join(filter(None, (said, *bad)))), "bad" if bad else "")]

    def _fields(self) -> Iterator[Section]:
        rows: list[tuple[Cell, ...]] = []
        for each in self.touched:
            before, after = each.version.before, each.version.after
            if before is not None and after is not None:
                rows += [
                    (after.name, field.field, f"{_cut(shown(field.old))} → {_cut(shown(field.new))}")
                    for field in field_changes(before, after)
                ]
        if rows:
            fitting, left = _fitting(rows)
            yield Section("What changed", tuple(filter(None, (left,))), ("<mission", "field", "value"), tuple(fitting))

    def notes(self) -> list[str]:
        """What a reader should know besides."""
        found = []
        for touched, (before, after) in zip(self.touched, self.pairs, strict=True):
            now = after.notes if after is not None else ()
            then = [line for line in before.notes if line not in now] if before is not None else []
            name = touched.version.newest.name
            found += [f"{name}: {_cut(first_line(line))}" for line in now]
            found += [f"{name}: before: {_cut(first_line(line))}" for line in then]
        notes = list(dict.fromkeys(found))
        left = len(notes) - _MOST_NOTES
        return [*notes[:_MOST_NOTES], *([f"and {left:,} notes more: `--output json` has all"] if left > 0 else [])]

    def document(self) -> dict[str, Any]:
        """The whole result for JSON; its form is described in `docs/backtest.md`."""
        return {
            "schema": JSON_SCHEMA,
            "kind": "backtest-changes",
            "since": self.revision,
            "missions": [
                {
                    "mission": each.version.newest.name,
                    "change": each.kind,
                    "fields": _document_of_fields(each.version),
                    "alike": each.version.alike,
                    "remark": each.remark or None,
                    "before": before and trial_entry(before),
                    "after": after and trial_entry(after),
                }
                for each, (before, after) in zip(self.touched, self.pairs, strict=True)
            ],
            "broken": self.broken,
        }


def _document_of_fields(version: Version) -> list[dict[str, Any]]:
    if version.before is None or version.after is None:
        return []
    changes = field_changes(version.before, version.after)
    return [{"field": each.field, "before": each.old, "after": each.new} for each in changes]


def _broken(trials: Sequence[Trial]) -> list[str]:
    from anomaly_times.backtest import Backtest

    return BacktestView(Backtest(tuple(trials), {})).broken


def _beside(before: Trial | None, after: Trial | None, figure: Callable[[Trial], str]) -> str:
    return beside(*(figure(trial) if trial is not None else None for trial in (before, after)))


def _figure(value: float | None) -> str:
    return f"{value:,.2f}" if value is not None and value == value else "–"


def _percent(value: float | None) -> str:
    return f"{100 * value:.1f} %" if value is not None and value == value else "–"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _fitting(rows: Sequence[tuple[Cell, ...]]) -> tuple[list[tuple[Cell, ...]], str]:
    """As many rows as a comment has room for, and a line about those that are left."""
    size = 0
    for n, row in enumerate(rows):
        text = "".join(cell if isinstance(cell, str) else "".join(part for part, _ in cell) for cell in row)
        # What Markdown would take for its own gets a backslash.
        size += len(re.sub(r"[\\`*_<>|\[\]#]", "..", text)) + 4 * len(row)
        if size > _MOST_CHARACTERS:
            return list(rows[:n]), f"the first {n:,} of {len(rows):,}: `--output json` has all"
    return list(rows), ""
