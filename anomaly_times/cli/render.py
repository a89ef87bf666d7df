"""How results reach people and programs: the only place that knows Rich.

stdout is the result; stderr is progress, warnings and notes. Colours, spinners and bars appear on a terminal alone.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from rich import box
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from rich.theme import Theme

from anomaly_times.cli.options import Output, Report, SectionsForm
from anomaly_times.cli.views import SPARK_WIDTH, Cell, View, shared_labels
from anomaly_times.errors import UsageError, installing
from anomaly_times.outputs import render_page

if TYPE_CHECKING:
    from anomaly_times.models import ModelInfo
    from anomaly_times.profiling import Stage, StageName
    from anomaly_times.stores.probe import Finding

__all__ = [
    "Advance",
    "Cell",
    "Lines",
    "Section",
    "Sections",
    "draw",
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
    "show_sections",
    "stderr",
    "stdout",
    "working",
]

_THEME = Theme({"bad": "bold red", "good": "green", "muted": "dim", "warn": "yellow"})
_LEAST_NAME, _LEAST_TEXT = 20, 12
"""A name shows so much at least where it is cut, and a text where it is folded."""
_INDENT = 2
_LEAST_SPARK = 8
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
    return _Console(file=file, theme=_THEME, highlight=False, markup=False, emoji=False, width=width)


class _Console(Console):
    """A console that leaves a reader who left to the root of the command line; Rich would end the process with 1."""

    def on_broken_pipe(self) -> None:
        """Let the error pass."""
        raise BrokenPipeError


def say(text: str) -> None:
    """One line of the result; what it quotes cannot move the cursor."""
    stdout().print(_clean(text), soft_wrap=True)


def say_lines(lines: Sequence[Cell]) -> None:
    """Lines of the result, parts of them in a style."""
    console = stdout()
    for line in lines:
        console.print(_text(line), soft_wrap=True)


def say_json(document: object, *, indent: int | None = None) -> None:
    """A document as the result, on one line unless it is to be read; JSON stays alone on stdout."""
    sys.stdout.write(json.dumps(document, allow_nan=False, ensure_ascii=False, indent=indent) + "\n")


def say_table(columns: Sequence[str], rows: Sequence[tuple[Cell, ...]]) -> None:
    """A table of the result; a column whose name begins with `>` holds figures and is flush right."""
    _print_table(stdout(), columns, rows)


def note(text: str) -> None:
    """Something to know besides, on stderr."""
    stderr().print(Text.assemble(("note: ", "warn"), _clean(text)), soft_wrap=True)


def say_profile(stages: Mapping[StageName, Stage]) -> None:
    """What stages took, on stderr."""
    console = stderr()
    console.print(Text(f"{'stage':<10}{'seconds':>10}{'CPU':>10}{'points':>14}{'bytes':>16}", "muted"), soft_wrap=True)
    for name, took in stages.items():
        amounts = "".join(f"{n:>{width},}" if n else " " * width for n, width in ((took.points, 14), (took.bytes, 16)))
        console.print(Text(f"{name:<10}{took.seconds:>10.3f}{took.cpu:>10.3f}{amounts}"), soft_wrap=True)
    told = "seconds are added up over threads and processes that run at once, without those of stages within"
    console.print(Text(told, "muted"), soft_wrap=True)


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
    # A frame has no place for what was stored, a table and a document have; but those in a file are not seen.
    _tell_beside(view.summary() if form in (Output.CSV, Output.PARQUET) or out is not None else [], out, plot)
    for line in view.notes():
        note(line)


def _tell_beside(lines: Sequence[str], out: Path | None, plot: Path | None = None) -> None:
    """Lines of a summary, and which files were written, on stderr."""
    console = stderr()
    files = [f"{what} into {file}" for what, file in (("printed", out), ("drawn", plot)) if file is not None]
    for line in (*lines, *files):
        console.print(Text(_clean(line)), soft_wrap=True)


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
            _print_table(console, report.columns, rows)
        for line in report.summary():
            console.print(Text(_clean(line)), soft_wrap=True)
    if out is not None:
        _write(out, text.getvalue().encode())
    else:
        sys.stdout.write(text.getvalue())
    _tell_beside(report.summary() if out is not None else [], out)
    for line in report.notes():
        note(line)


class Sections(Protocol):
    """A result of several tables, with a line or two of text between them."""

    def sections(self) -> list[Section]:
        """What is printed, in order."""
        ...

    def notes(self) -> list[str]:
        """What a reader should know besides."""
        ...

    def document(self) -> dict[str, Any]:
        """The whole result for JSON."""
        ...


@dataclass(frozen=True)
class Section:
    """A heading, lines of text, a table where there are rows (columns as in `Lines`), and lines to be copied as is."""

    title: str
    lines: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[Cell, ...], ...] = ()
    code: str = ""


def show_sections(result: Sections, form: SectionsForm, *, out: Path | None = None) -> None:
    """Print sections to stdout or into `out`, as tables, Markdown or JSON; notes go to stderr, or under the Markdown.

    Raises:
        UsageError: the file cannot be written.
    """
    text = io.StringIO()
    if form is SectionsForm.JSON:
        text.write(json.dumps(result.document(), allow_nan=False, ensure_ascii=False) + "\n")
    elif form is SectionsForm.MARKDOWN:
        notes = Section("Notes", tuple(f"- {_escaped(line)}" for line in result.notes()))
        parts = [each for each in (*result.sections(), notes) if each.lines or each.rows or each.code]
        text.write("\n".join(_markdown(each) for each in parts))
    else:
        console = stdout() if out is None else stdout(text)
        for i, each in enumerate(result.sections()):
            if i:
                console.print()
            console.print(Text(_clean(each.title), style="bold"), soft_wrap=True)
            for line in each.lines:
                console.print(Text(_clean(line)), soft_wrap=True)
            if each.rows:
                _print_table(console, each.columns, each.rows)
            for line in each.code.split("\n")[:-1]:
                console.print(Text("".join(c for c in line if c.isprintable() or c in "\t\r")), soft_wrap=True)
    if out is not None:
        _write(out, text.getvalue().encode())
    else:
        sys.stdout.write(text.getvalue())
    _tell_beside([], out)
    if form is not SectionsForm.MARKDOWN:
        for line in result.notes():
            note(line)


def _markdown(section: Section) -> str:
    """A section as Markdown that every renderer of tables takes."""
    parts = [f"### {_escaped(section.title)}\n"]
    if section.lines:
        # Lists stay one list, other lines stay lines.
        listed = section.lines[0].startswith("- ")
        parts.append("\n".join(section.lines if listed else [_escaped(line) + "  " for line in section.lines]) + "\n")
    if section.rows:
        rows = [[_escaped(_text(cell).plain) for cell in row] for row in section.rows]
        rule = ["---:" if column.startswith(">") else "---" for column in section.columns]
        heads = [_escaped(_heading(column)) for column in section.columns]
        parts += ["| " + " | ".join(cells) + " |" for cells in (heads, rule, *rows)]
        parts.append("")
    if section.code:
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", section.code)), default=0))
        parts.append(f"{fence}\n{section.code}{fence}\n")
    return "\n".join(parts)


def _escaped(text: str) -> str:
    """`text` as it is in Markdown, also inside of a table: labels come from outside."""
    return re.sub(r"([\\`*_<>|\[\]#])", r"\\\1", _clean(text))


def _print_view(console: Console, view: View, top: int) -> None:
    console.print(Text(_clean(view.title), style="bold"), soft_wrap=True)
    shared = shared_labels(view.labels)
    if shared:
        console.print(Text(f"all with {_clean(shared)}", style="muted"), soft_wrap=True)
    columns, rows = _fitted(view, top, console.width)
    if rows:
        _print_table(console, columns, rows)
    if len(view.labels) > len(rows):
        console.print(Text(f"and {len(view.labels) - len(rows):,} more: `--top 0` shows all", style="muted"))
    for line in view.summary():
        console.print(Text(_clean(line)), soft_wrap=True)


def _fitted(view: View, top: int, room: int) -> tuple[Sequence[str], list[tuple[Cell, ...]]]:
    """Columns and rows with sparklines as long as there is room for them beside whole names, or without any."""
    columns, rows = view.columns, view.rows(top)
    widths = _widths(columns, rows, sys.maxsize)
    lines = {i: cell_len(_heading(column)) for i, column in enumerate(columns) if column.startswith("~")}
    for length in range(SPARK_WIDTH, _LEAST_SPARK - 1, -1):
        needed = sum(max(lines[i], min(width, length)) if i in lines else width for i, width in enumerate(widths))
        if needed + _between(columns) <= room:
            return columns, rows if length == SPARK_WIDTH else view.rows(top, spark=length)
    kept = [i for i in range(len(columns)) if i not in lines]
    return [columns[i] for i in kept], [tuple(row[i] for i in kept) for row in rows]


def _print_table(console: Console, columns: Sequence[str], rows: Sequence[tuple[Cell, ...]]) -> None:
    """A table that fits the console, or one that its lines run over: no figure is ever cut.

    Columns go by the first character of their names: `>` figures, flush right; `<` names, which may be cut short; `~`
    sparklines. All others are text, which may be folded. Where figures leave too little room beside names that come
    first, or names would look alike, each has a line of its own.
    """
    widths = _widths(columns, rows, console.width - _between(columns))
    wide = sum(widths) + _between(columns) > console.width
    if columns[0].startswith("<") and (wide or _alike([_text(row[0]).plain for row in rows], widths[0])):
        columns, names = columns[1:], [row[0] for row in rows]
        rows = [row[1:] for row in rows]
        widths = _widths(columns, rows, console.width - _between(columns) - _INDENT)
        console.print(_table(columns, widths, rows[:0], indent=_INDENT))
        for name, row in zip(names, rows, strict=True):
            console.print(_text(name), no_wrap=True, overflow="ellipsis")
            console.width = max(console.width, sum(widths) + _between(columns) + _INDENT)
            console.print(_table(columns, widths, [row], header=False, indent=_INDENT))
        return
    console.width = max(console.width, sum(widths) + _between(columns))
    console.print(_table(columns, widths, rows))


def _table(
    columns: Sequence[str],
    widths: Sequence[int],
    rows: Sequence[tuple[Cell, ...]],
    *,
    header: bool = True,
    indent: int = 0,
) -> RenderableType:
    table = Table(
        box=box.SIMPLE_HEAD if header else None,
        pad_edge=False,
        show_edge=False,
        show_header=header,
        padding=(0, 1 if header else 2, 0, 0),
        header_style="muted",
    )
    for column, width in zip(columns, widths, strict=True):
        table.add_column(
            _heading(column),
            justify="right" if column.startswith(">") else "left",
            width=width,
            no_wrap=column.startswith("<"),
            overflow="ellipsis" if column.startswith("<") else "fold",
        )
    for row in rows:
        table.add_row(*(_text(cell) for cell in row))
    return Padding(table, (0, 0, 0, indent), expand=False) if indent else table


def _widths(columns: Sequence[str], rows: Sequence[tuple[Cell, ...]], room: int) -> list[int]:
    """How wide each column is: as it would like to be where there is room, else no less than it can do with.

    Names and text give way first, the widest before others, then figures are folded between words.
    """
    cells = [[_heading(column), *(_text(row[i]).plain for row in rows)] for i, column in enumerate(columns)]
    widths = [max(map(cell_len, column)) for column in cells]
    # The dots of "1 … 2" stay where the first number is.
    words = [max(cell_len(word) for cell in column for word in re.split(" (?!…)", cell)) for column in cells]
    for figures in (False, True):
        least = [
            words[i] if figures else min(widths[i], _LEAST_NAME if column.startswith("<") else _LEAST_TEXT)
            for i, column in enumerate(columns)
        ]
        while sum(widths) > room:
            able = [i for i, c in enumerate(columns) if c.startswith((">", "~")) == figures and widths[i] > least[i]]
            if not able:
                break
            widths[max(able, key=widths.__getitem__)] -= 1
    return widths


def _alike(names: Sequence[str], width: int) -> bool:
    """Whether cutting makes two different names one."""
    shown = {name if cell_len(name) <= width else name[: width - 1] for name in names}
    return len(shown) < len(set(names))


def _between(columns: Sequence[str]) -> int:
    """What the spaces between columns take."""
    return 2 * (len(columns) - 1)


def _heading(column: str) -> str:
    return column[1:] if column.startswith((">", "<", "~")) else column


def _text(cell: Cell) -> Text:
    return Text(_clean(cell)) if isinstance(cell, str) else Text.assemble(*((_clean(t), style) for t, style in cell))


def show_models(models: Sequence[ModelInfo], revisions: Mapping[str, str], form: Report) -> None:
    """The registry: what each model is, what must be installed for it, and which weights or version would answer."""
    installed = {model.extra: _installed(model.extra) for model in models}
    if form is Report.JSON:
        say_json(
            [
                {
                    "name": model.name,
                    "summary": model.summary,
                    "extra": model.extra or None,
                    "installed": installed[model.extra],
                    "revision": revisions.get(model.name) or None,
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
        state = ("yes", "good") if ready else (f"no: [{model.extra}]", "warn")
        rows.append((model.name, model.summary, [state]))
        if revision := revisions.get(model.name):
            rows.append(("", f"  revision: {revision}", ""))
        rows += [("", f"  {name}: {meaning}", "") for name, meaning in model.params.items()]
    say_table(("model", "what it does", "installed"), rows)
    for extra in sorted(extra for extra, ready in installed.items() if not ready):
        say(f"[{extra}]: {installing(extra)}")


def show_findings(source: str, findings: Sequence[Finding], form: Report) -> None:
    """What the doctor found, each with what to do."""
    if form is Report.JSON:
        say_json({"source": source, "findings": [asdict(finding) for finding in findings]})
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


def draw(file: Path, page: str) -> None:
    """Write a page into a file, and say so on stderr.

    Raises:
        UsageError: the file cannot be written.
    """
    _write(file, page.encode())
    _tell_beside([], None, file)


def _write(file: Path, body: bytes) -> None:
    try:
        file.write_bytes(body)
    except OSError as exc:
        raise UsageError(f"{file} cannot be written: {exc.strerror}") from exc


def _clean(text: str) -> str:
    """`text` on one line, without what would move the cursor or change colours: labels come from outside."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
