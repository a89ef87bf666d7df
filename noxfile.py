"""What can be run on this project: `uv run nox -s tests`, `lint`, `bench`, `bench-models`, `constraints`."""

from __future__ import annotations

import os
from pathlib import Path

import nox

nox.options.default_venv_backend = "uv"
nox.options.sessions = ["tests"]
nox.options.reuse_existing_virtualenvs = True

PYTHON = "3.11"
# Servers and libraries that would otherwise phone home, or wait for a network.
QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def install(session: nox.Session, *groups: str, extras: str = "nixtla,chronos,ray,production") -> None:
    """The package as pinned in constraints.txt, with what these dependency groups name."""
    env = {}
    # A folder of wheels that pip is told about (a CPU build of torch, say) counts for uv too.
    if links := os.environ.get("PIP_FIND_LINKS"):
        env["UV_FIND_LINKS"] = links
    args = [arg for group in groups for arg in ("--group", group)]
    session.run_install(
        "uv", "pip", "install", "--quiet", "-c", "constraints.txt", *args, "-e", f".[{extras}]", env=env, external=True
    )


@nox.session
def tests(session: nox.Session) -> None:
    """All tests, then `lint`; arguments after `--` go to pytest."""
    install(session, "test")
    session.run("pytest", "-n", "auto", "--dist", "worksteal", *session.posargs, env=QUIET)
    if not session.posargs:
        session.notify("lint")


@nox.session
def lint(session: nox.Session) -> None:
    """Style, types, and which room may import which."""
    install(session, "lint", "test")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    # What a workflow could be made to do.
    session.run("zizmor", "--offline", "--no-progress", ".github/workflows")
    session.run("mypy")
    session.run("lint-imports")


@nox.session
def bench(session: nox.Session) -> None:
    """Speed beside a peer or a floor in the same run: a table, and JSON under bench-results/."""
    install(session, "test", "bench")
    session.run("python", "-m", "benchmarks", *session.posargs, env=QUIET)


@nox.session(name="bench-models")
def bench_models(session: nox.Session) -> None:
    """Errors, coverage, speed and detection of the models: tables, and JSON in bench-results/.

    Arguments after `--` go to `benchmarks.models`, which then runs alone.
    """
    install(session, "test", "bench")
    args = session.posargs or ["--speed"]
    session.run("python", "-m", "benchmarks.models", "--json", "bench-results/models.json", *args, env=QUIET)
    if not session.posargs:
        session.run("python", "-m", "benchmarks.nab", "--json", "bench-results/detection.json", env=QUIET)
        session.run("python", "-m", "benchmarks.evidence", "--workers", "2", env=QUIET)


@nox.session(name="bench-scale")
def bench_scale(session: nox.Session) -> None:
    """What passes cost as series and missions grow: a table, and bench-results/scale.json. Takes an hour."""
    install(session, "test", "bench")
    session.run("python", "-m", "benchmarks.scale", *session.posargs, env=QUIET)


@nox.session(python=False)
def constraints(session: nox.Session) -> None:
    """Pin every dependency with its hashes, without naming a registry."""
    # Which build of torch (CPU, CUDA) is a choice of the machine, so images pin it themselves.
    excludes = Path(session.create_tmp(), "excludes.txt")
    excludes.write_text("torch\n")
    session.run(
        *("uv", "pip", "compile", "pyproject.toml", "--universal", "--python-version", PYTHON, "--generate-hashes"),
        *("--extra", "nixtla", "--extra", "chronos", "--extra", "ray", "--extra", "production"),
        *("--group", "dev", "--group", "test", "--group", "lint", "--group", "bench"),
        *("--no-emit-index-url", "--no-emit-find-links", "--no-annotate", "--custom-compile-command"),
        "uv run nox -s constraints",
        *("--excludes", str(excludes)),
        *("--quiet", "--output-file", "constraints.txt", *session.posargs),
        external=True,
    )
