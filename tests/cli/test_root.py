"""The root: light help, one place for errors, exit codes that scripts can trust."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from typer.core import TyperGroup

import anomaly_times.cli.options
from anomaly_times.cli import app
from anomaly_times.errors import (
    AnomalyTimesError,
    MissingExtraError,
    ModelError,
    NoSeriesError,
    StoreUnavailableError,
    UsageError,
)
from tests.cli.conftest import Run

HEAVY = ("polars", "numpy", "pydantic", "httpx", "prefect", "rich", "yaml", "promql_parser")


@pytest.mark.parametrize(
    ("args", "typers_own"),
    [(["--help"], []), (["--version"], []), (["detect", "--help"], ["pydantic"]), (["nonsense"], ["pydantic"])],
)
def test_help_imports_nothing_heavy(args: list[str], typers_own: list[str]) -> None:
    code = (
        "import sys\nfrom anomaly_times.cli import app\n"
        f"try: app({args!r})\nexcept SystemExit: pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == str(typers_own)


def test_version_and_help(at: Run) -> None:
    assert at("--version").stdout.startswith("anomaly-times 0.")
    shown = at("--help")
    assert shown.exit_code == 0
    told = "".join(shown.stdout.partition("Exit codes: ")[2:]).replace("\n", " ").split(", ")
    assert [int(one.split()[0]) for one in told] == [*range(7), 130]
    for command in ("forecast", "detect", "models", "doctor", "demo"):
        assert f"  {command} " in shown.stdout
    assert "..." not in shown.stdout.partition("Commands:")[2]  # no summary is cut


def test_options_are_listed_in_groups(at: Run) -> None:
    shown = at("detect", "--help").stdout
    places = [shown.index(f"\n{title}:\n") for title in ("Query", "Time", "What counts as anomalous", "Output")]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nonsense"], "there is no command 'nonsense'"),
        (["mission", "nonsense"], "there is no command 'nonsense'"),
        (["--nonsense"], "there is no option --nonsense"),
        (["detect", "--nope"], "there is no option --nope"),
        (["detect", "--jobs", "0"], "--jobs: must be at least 1"),
        (["detect", "--top", "x"], "--top: must be a whole number"),
        (["detect", "--promql"], "--promql: needs a value"),
        (["models", "--output", "xml"], "--output: 'xml' is not one of 'table', 'json'"),
        (["doctor", "extra"], "too many arguments: extra"),
        (["mission", "show"], "NAME: is missing"),
    ],
)
def test_wrong_usage_exits_2_and_is_told_in_our_words(at: Run, args: list[str], message: str) -> None:
    result = at(*args)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.splitlines()[0] == f"error: {message}"
    assert "Usage: " not in result.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("no", hint="try"), 2),
        (MissingExtraError("no", extra="ray"), 2),
        (NoSeriesError("no", hint="try"), 3),
        (StoreUnavailableError("no", hint="try"), 4),
        (ModelError("no", hint="try"), 5),
        (AnomalyTimesError("no", hint="try"), 1),
    ],
)
def test_an_error_is_a_message_a_hint_and_its_exit_code(
    at: Run, monkeypatch: pytest.MonkeyPatch, error: AnomalyTimesError, code: int
) -> None:
    monkeypatch.setattr(anomaly_times.cli.options, "query_from_options", _raising(error))
    result = at("detect", "--promql", "up")
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr == f"error: no\nhint: {error.hint}\n"


def test_a_bug_is_short_without_debug_and_whole_with_it(at: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anomaly_times.cli.options, "query_from_options", _raising(KeyError("x")))
    result = at("detect", "--promql", "up")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: this is a bug of ours: KeyError: 'x'\nhint: ")
    assert "Traceback" not in result.stderr
    assert "Traceback" in at("--debug", "detect", "--promql", "up").stderr


def test_what_a_message_quotes_cannot_move_the_cursor(at: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anomaly_times.cli.options, "query_from_options", _raising(UsageError("\x1b[2Jgone")))
    assert at("detect", "--promql", "up").stderr == "error: \\x1b[2Jgone\n"


def test_ctrl_c_ends_cleanly(at: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anomaly_times.cli.options, "query_from_options", _raising(KeyboardInterrupt()))
    result = at("detect", "--promql", "up")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "interrupted\n")
    # While a command is still being looked up, too.
    monkeypatch.setattr(TyperGroup, "make_context", _raising(KeyboardInterrupt()))
    early = at("detect", "--promql", "up")
    assert (early.exit_code, early.stdout, early.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize("form", ["json", "table"])
def test_a_reader_that_left_is_no_error(form: str) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as nobody:
        run = subprocess.run(
            [sys.executable, "-m", "anomaly_times.cli", "models", "--output", form],
            stdout=nobody,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            cwd=Path(__file__).parents[2],
        )
    assert (run.returncode, run.stderr) == (141, "")


def _raising(error: BaseException) -> object:
    def run(*_: object, **__: object) -> None:
        raise error

    return run


def test_every_command_has_its_section_in_the_docs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    commands = [command.callback.__name__ for command in app.registered_commands if command.callback]
    assert len(commands) >= 5
    for command in commands:
        assert f"\n## `at {command}`\n" in page


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_errors_are_coloured_on_a_terminal_unless_no_color_is_set(no_color: str, coloured: bool) -> None:
    ours, theirs = pty.openpty()
    run = subprocess.Popen(
        [sys.executable, "-m", "anomaly_times.cli", "detect", "--promql", "up", "--step", "0s"],
        stderr=theirs,
        env={**os.environ, "NO_COLOR": no_color, "TERM": "xterm"},
        cwd=Path(__file__).parents[2],
    )
    assert run.wait(60) == 2
    os.close(theirs)
    shown = os.read(ours, 10_000).decode()
    os.close(ours)
    assert ("\x1b[31m" in shown) is coloured
    assert "--step: '0s' is no time at all" in shown
