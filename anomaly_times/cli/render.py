"""How results reach people and programs: the only place that knows Rich.

stdout is the result; stderr is progress, warnings and notes. Colours, spinners and bars appear on a terminal alone.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from rich.theme import Theme

from anomaly_times.cli.options import Output, Report
from anomaly_times.cli.views import Cell, View, shared_labels
from anomaly_times.errors import UsageError
from anomaly_times.outputs import render_page

if TYPE_CHECKING:
    from anomaly_times.models import ModelInfo
    from anomaly_times.stores.probe import Finding

__all__ = [
    "Advance",
    "Cell",
    "Lines",
    "log",
    "note",
    "progress",
    "say",
    "say_json",
    "say_lines",
    "say_table",
    "show",
    "show_findings",
    "show_models",
    "show_report",
    "stderr",
    "stdout",
    "working",
]

_THEME = Theme({"bad": "bold red", "good": "green", "muted": "dim", "warn": "yellow"})
_PIPE_WIDTH = 1000
"""In a pipe or file a table is as wide as it needs to be: what reads it has no right edge."""


def stdout(file: IO[str] | None = None) -> Console:
    """Where results go: stdout, or an open file."""
    return _console(file or sys.stdout)


def stderr() -> Console:
    """Where everything else goes."""
    return _console(sys.stderr)


def _console(file: IO[str]) -> Console:
    width = None if file.isatty() or "COLUMNS" in os.environ else _PIPE_WIDTH
    return Console(file=file, theme=_THEME, highlight=False, markup=False, emoji=False, width=width)


def say(text: str) -> None:
    """One line of the result; what it quotes cannot move the cursor."""
    stdout().print(_clean(text), soft_wrap=True)


def say_lines(lines: Sequence[Cell]) -> None:
    """Lines of the result, parts of them in a style."""
    console = stdout()
    for line in lines:
        console.print(_text(line), soft_wrap=True)


def say_json(document: object) -> None:
    """A document as the result; JSON stays alone on stdout."""
    _print_json(document)


def say_table(columns: Sequence[str], rows: Sequence[tuple[Cell, ...]]) -> None:
    """A table of the result; a column whose name begins with `>` is flush right."""
    stdout().print(_table(columns, rows))


def note(text: str) -> None:
    """Something to know besides, on stderr."""
    stderr().print(Text.assemble(("note: ", "warn"), _clean(text)), soft_wrap=True)


def log(text: str) -> None:
    """A line with the time before it, on stderr."""
    console = stderr()
    console.print(Text.assemble((f"{datetime.now(UTC):%Y-%m-%d %H:%M:%SZ} ", "muted"), _clean(text)), soft_wrap=True)


@contextmanager
def working(text: str) -> Iterator[None]:
    """A spinner on stderr while the body runs; on a terminal only."""
    console = stderr()
    with console.status(_clean(text)) if console.is_terminal else contextlib.nullcontext():
        yield


class Advance(Protocol):
    """Tells a progress bar that more items are done."""

    def __call__(self, n: int = 1) -> None:
        """So many more."""
        ...


@contextmanager
def progress(text: str, total: int) -> Iterator[Advance]:
    """A progress bar on stderr while the body runs; on a terminal only."""
    console = stderr()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(text, total=total)
        yield lambda n=1: bar.advance(task, n)


def show(view: View, form: Output, *, out: Path | None = None, plot: Path | None = None, top: int = 20) -> None:
    """Print a result as `form` to stdout or into `out`, and draw it into `plot`; notes go to stderr.

    Raises:
        UsageError: a file cannot be written.
    """
    if plot is not None:
        page = render_page(view.title, view.charts(top), lead=". ".join(view.summary()))
        _write(plot, page.encode())
    if form is Output.TABLE:
        text = io.StringIO()
        _print_view(stdout() if out is None else stdout(text), view, top)
        body = text.getvalue().encode()
    elif form is Output.JSON:
        body = (json.dumps(view.document(), allow_nan=False, ensure_ascii=False) + "\n").encode()
    elif form is Output.CSV:
        body = view.frame().write_csv(datetime_format="%Y-%m-%dT%H:%M:%S%.fZ").encode()
    else:
        buffer = io.BytesIO()
        view.frame().write_parquet(buffer)
        body = buffer.getvalue()
    if out is not None:
        _write(out, body)
    elif body:
        sys.stdout.flush()
        sys.stdout.buffer.write(body)
    console = stderr()
    # A frame has no place for what was written, a table and a document have.
    beside = view.summary() if form in (Output.CSV, Output.PARQUET) else []
    for line in (*beside, *(f"drawn into {plot}" for _ in range(plot is not None))):
        console.print(Text(_clean(line)), soft_wrap=True)
    for line in view.notes():
        note(line)


class Lines(Protocol):
    """A result of which every line is about something else than a series."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the table's columns; one that begins with `>` is flush right."""
        ...

    def rows(self) -> list[tuple[Cell, ...]]:
        """The rows of the table, what matters first."""
        ...

    def summary(self) -> list[str]:
        """What belongs to the result and has no place in the table."""
        ...

    def notes(self) -> list[str]:
        """What a reader should know besides."""
        ...

    def document(self) -> dict[str, Any]:
        """The whole result for JSON."""
        ...


def show_report(report: Lines, form: Output, *, out: Path | None = None) -> None:
    """Print a report to stdout or into `out`, as a table or JSON; notes go to stderr.

    Raises:
        UsageError: the file cannot be written.
    """
    text = io.StringIO()
    if form is Output.JSON:
        text.write(json.dumps(report.document(), allow_nan=False, ensure_ascii=False) + "\n")
    else:
        console = stdout() if out is None else stdout(text)
        rows = report.rows()
        if rows:
            console.print(_table(report.columns, rows))
        for line in report.summary():
            console.print(Text(_clean(line)), soft_wrap=True)
    if out is not None:
        _write(out, text.getvalue().encode())
    else:
        sys.stdout.write(text.getvalue())
    for line in report.notes():
        note(line)


def _print_view(console: Console, view: View, top: int) -> None:
    console.print(Text(_clean(view.title), style="bold"), soft_wrap=True)
    shared = shared_labels(view.labels)
    if shared:
        console.print(Text(f"all with {_clean(shared)}", style="muted"), soft_wrap=True)
    rows = view.rows(top)
    if rows:
        console.print(_table(view.columns, rows))
    if len(view.labels) > len(rows):
        console.print(Text(f"and {len(view.labels) - len(rows):,} more: `--top 0` shows all", style="muted"))
    for line in view.summary():
        console.print(Text(_clean(line)), soft_wrap=True)


def _table(columns: Sequence[str], rows: Sequence[tuple[Cell, ...]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0), header_style="muted")
    for column in columns:
        name = column.removeprefix(">")
        # On a narrow terminal the names of series are folded: figures are what a table is for.
        table.add_column(
            name, justify="right" if name != column else "left", no_wrap=column != columns[0], overflow="fold"
        )
    for row in rows:
        table.add_row(*(_text(cell) for cell in row))
    return table


def _text(cell: Cell) -> Text:
    return Text(_clean(cell)) if isinstance(cell, str) else Text.assemble(*((_clean(t), style) for t, style in cell))


def show_models(models: Sequence[ModelInfo], form: Report) -> None:
    """The registry: what each model is, and what must be installed for it."""
    installed = {model.extra: _installed(model.extra) for model in models}
    if form is Report.JSON:
        _print_json(
            [
                {
                    "name": model.name,
                    "summary": model.summary,
                    "extra": model.extra or None,
                    "installed": installed[model.extra],
                    "slow": model.slow,
                    "params": dict(model.params),
                }
                for model in models
            ]
        )
        return
    rows: list[tuple[Cell, ...]] = []
    for model in models:
        ready = installed[model.extra]
        need = "" if ready else f"pip install 'anomaly-times[{model.extra}]'"
        rows.append((model.name, model.summary, [("yes", "good") if ready else (f"no: {need}", "warn")]))
        rows += [("", f"  {name}: {meaning}", "") for name, meaning in model.params.items()]
    say_table(("model", "what it does", "installed"), rows)


def show_findings(source: str, findings: Sequence[Finding], form: Report) -> None:
    """What the doctor found, each with what to do."""
    if form is Report.JSON:
        _print_json({"source": source, "findings": [asdict(finding) for finding in findings]})
        return
    console = stdout()
    for finding in findings:
        console.print(
            Text.assemble(
                (f"{finding.status:<5}", _STATUS_STYLE.get(finding.status, "muted")),
                _clean(f"{finding.check}: {finding.detail}"),
            ),
            soft_wrap=True,
        )
        if finding.hint:
            console.print(Text(f"     → {_clean(finding.hint)}", style="muted"), soft_wrap=True)


_STATUS_STYLE = {"ok": "good", "warn": "warn", "fail": "bad"}
# One module that each extra brings stands for all of them.
_EXTRA_MODULES = {"nixtla": ("statsforecast", "mlforecast", "lightgbm"), "chronos": ("chronos",), "ray": ("ray",)}


def _installed(extra: str) -> bool:
    return all(find_spec(module) is not None for module in _EXTRA_MODULES.get(extra, ()))


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, allow_nan=False, ensure_ascii=False, indent=2) + "\n")


def _write(file: Path, body: bytes) -> None:
    try:
        file.write_bytes(body)
    except OSError as exc:
        raise UsageError(f"{file} cannot be written: {exc.strerror}") from exc


def _clean(text: str) -> str:
    """`text` on one line, without what would move the cursor or change colours: labels come from outside."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
