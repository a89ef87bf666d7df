"""The command line, `at` (also `anomaly-times`): parse, call one function, show, exit.

What takes long to import (polars, numpy, pydantic, httpx, Prefect, Rich) is imported inside the functions that need
it, so that `at --help` answers at once.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from anomaly_times.cli.backtest import backtest
from anomaly_times.cli.dashboards import dashboards
from anomaly_times.cli.demo import demo
from anomaly_times.cli.deploy import deploy
from anomaly_times.cli.detect import detect
from anomaly_times.cli.doctor import doctor
from anomaly_times.cli.explain import explain
from anomaly_times.cli.forecast import forecast
from anomaly_times.cli.mission import mission_app
from anomaly_times.cli.models import models_app
from anomaly_times.cli.options import GroupedHelp
from anomaly_times.cli.rules import rules
from anomaly_times.cli.run import run
from anomaly_times.cli.status import status
from anomaly_times.cli.up import up
from anomaly_times.errors import AnomalyTimesError, in_our_words

__all__ = ["app", "main"]

EXIT_BUG = 1
EXIT_INTERRUPTED = 130  # 128 + SIGINT
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE: `at … | head` is no failure of ours


class _Root(TyperGroup):
    """The root group, and the one place where errors become messages and exit codes."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except TyperException as exc:
            raise _told(exc) from None
        except KeyboardInterrupt:
            raise _interrupted() from None

    def invoke(self, ctx: Any) -> Any:
        debug = bool(ctx.params.get("debug"))
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except (typer.Exit, typer.Abort):
            raise  # Typer's own: help and version
        except TyperException as exc:
            raise _told(exc) from None
        except KeyboardInterrupt:
            raise _interrupted() from None
        except BrokenPipeError:
            # Python would complain once more when it flushes stdout at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(EXIT_BROKEN_PIPE) from None
        except AnomalyTimesError as exc:
            _tell(exc, exc.message, exc.hint, debug=debug)
            raise typer.Exit(exc.exit_code) from None
        except Exception as exc:  # noqa: BLE001 - the last border: what comes here is a bug of ours
            message = f"this is a bug of ours: {type(exc).__name__}: {exc}"
            _tell(exc, message, "" if debug else "`at --debug …` shows where; please report it", debug=debug)
            raise typer.Exit(EXIT_BUG) from None
        return result


def _interrupted() -> typer.Exit:
    """What to raise after Ctrl-C, once that is told."""
    typer.echo("interrupted", err=True)
    return typer.Exit(EXIT_INTERRUPTED)


def _told(exc: TyperException) -> TyperException | typer.Exit:
    """What to raise for a usage error once it is told in our words; Typer's own where help is all that it says."""
    if type(exc).__name__ == "NoArgsIsHelpError":
        return exc
    message = exc.message.rstrip(".")
    param, context = getattr(exc, "param", None), getattr(exc, "ctx", None)
    if param is not None:
        name = max(param.opts, key=len) if param.param_type_name == "option" else param.metavar or param.name.upper()
        message = f"{name}: {in_our_words(message) or 'is missing'}"
    for theirs, ours in _TYPERS_WORDS:
        message = re.sub(theirs, ours, message)
    near = sorted(getattr(exc, "possibilities", None) or [])
    hint = f"did you mean {', '.join(near)}?" if near else ""
    if context is not None and not hint:
        hint = f"`{context.command_path} --help` shows what it takes"
    _tell(exc, message, hint, debug=False)
    return typer.Exit(exc.exit_code)


_TYPERS_WORDS = (
    (r"^No such (command|option):? ", r"there is no \1 "),
    (r"^Option '(\S+)' requires an argument", r"\1: needs a value"),
    (r"^Got unexpected extra arguments?(?:\(s\))? \((.*)\)", r"too many arguments: \1"),
)


def _tell(exc: Exception, message: str, hint: str, *, debug: bool) -> None:
    if debug:
        traceback.print_exception(exc, file=sys.stderr)
    # Typer drops colours in a pipe by itself, and knows nothing of NO_COLOR.
    colour = False if os.environ.get("NO_COLOR") else None
    typer.echo(f"{typer.style('error:', fg='red', bold=True)} {_printable(message)}", err=True, color=colour)
    if hint:
        typer.echo(f"{typer.style('hint:', bold=True)} {_printable(hint)}", err=True, color=colour)


def _printable(text: str) -> str:
    """`text` less what would move the cursor or hide something: messages may quote a server or a file."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)


app = typer.Typer(
    cls=_Root,
    name="at",
    help="Forecasts and anomaly scores for Prometheus-compatible metrics.",
    epilog="Begin with `at demo`, which needs no server. "
    "Exit codes: 0 done, 1 a bug of ours, 2 wrong usage, 3 a problem in a mission or query, "
    "4 a server or folder refused or is away, 5 a model failed, 6 a plan has changes (--detailed-exitcode), "
    "130 interrupted by Ctrl-C.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Rich's help looks better and takes half a second to import.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"anomaly-times {version('anomaly-times')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with every error.")] = False,
) -> None:
    pass


for _command in (forecast, detect, explain, backtest, dashboards, rules, run, status, up, deploy, doctor, demo):
    app.command(cls=GroupedHelp)(_command)
app.add_typer(mission_app)
app.add_typer(models_app)


def main() -> None:
    """Run the command line of this process."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that knows no block characters gets question marks instead of an error.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    app(prog_name=os.path.basename(sys.argv[0]) if sys.argv else "at")  # noqa: PTH119 - pathlib is no lighter
