"""Which mission files a Git revision did not have, or had otherwise: what a pull request touched."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from anomaly_times.errors import UsageError
from anomaly_times.loading import DEFAULTS_FILE, Loading

__all__ = ["changed_files", "only_changed"]


def changed_files(revision: str) -> frozenset[Path]:
    """Absolute paths of files changed, added or deleted since this line of work left `revision`; new ones included.

    What others committed to `revision` in the meantime is no change of ours.

    Raises:
        UsageError: no Git, no working tree, or a revision that it does not know.
    """
    if not revision or revision.startswith("-"):
        raise UsageError(f"{revision!r} is no Git revision")
    root = Path(_git(["rev-parse", "--show-toplevel"]).rstrip("\n")).resolve()
    changed = _git(["diff", "--name-only", "-z", "--merge-base", revision, "--"], root)
    new = _git(["ls-files", "--others", "--exclude-standard", "-z"], root)
    return frozenset(root / name for name in f"{changed}{new}".split("\0") if name)


def only_changed(loading: Loading, changed: frozenset[Path]) -> Loading:
    """What is left of `loading` without the files that did not change; a changed `defaults.yaml` changes its folder.

    A name that is taken twice stays a problem wherever it shows, for the other file may be the one that changed.
    """
    folders = {path.parent for path in changed if path.name == DEFAULTS_FILE}
    known: dict[str, bool] = {}

    def touched(file: str) -> bool:
        if file not in known:
            path = Path(file).resolve()
            known[file] = path in changed or path.parent in folders
        return known[file]

    return replace(
        loading,
        missions=tuple(loaded for loaded in loading.missions if touched(loaded.file)),
        problems=tuple(p for p in loading.problems if touched(p.where.file) or p.code == "mission/name-taken"),
        files=tuple(file for file in loading.files if touched(file)),
    )


def _git(args: Sequence[str], folder: Path | None = None) -> str:
    try:
        done = subprocess.run(["git", *args], cwd=folder, capture_output=True, text=True, check=True)  # noqa: S603, S607
    except FileNotFoundError:
        raise UsageError("git is not installed, and --changed-since asks it") from None
    except subprocess.CalledProcessError as exc:
        reason = " ".join(exc.stderr.split())[:300]
        raise UsageError(
            f"git {args[0]} failed: {reason}",
            hint="in CI fetch the whole history (actions/checkout: `fetch-depth: 0`; GitLab: `GIT_DEPTH: 0`)",
        ) from exc
    return done.stdout
