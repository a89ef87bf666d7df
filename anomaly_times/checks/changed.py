"""Which mission files a Git revision did not have, or had otherwise: what a pull request touched."""

from __future__ import annotations

import subprocess
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from anomaly_times.errors import UsageError
from anomaly_times.loading import DEFAULTS_FILE, Loading
from anomaly_times.problems import Problem

__all__ = ["Changes", "changed_files", "only_changed"]


@dataclass(frozen=True)
class Changes:
    """What Git says of a working tree: the files that differ from a revision, and all that it tracks (absolute)."""

    root: Path
    changed: frozenset[Path]
    tracked: frozenset[Path]

    def touch(self, file: Path) -> bool:
        """Whether `file` changed, or Git does not know it.

        Raises:
            UsageError: it is outside the working tree.
        """
        # A link changes where it stands, or where it leads to.
        places = {file.parent.resolve() / file.name, file.resolve()}
        if not all(place.is_relative_to(self.root) for place in places):
            raise UsageError(
                f"{file} is not in the Git repository {self.root}, so nothing tells whether it changed",
                hint="run it in the repository of the files, or without --changed-since",
            )
        return any(place in self.changed or place not in self.tracked for place in places)


def changed_files(revision: str) -> Changes:
    """Files changed, added or deleted since this line of work left `revision`, in the repository of this folder.

    What others committed to `revision` in the meantime is no change of ours. A file that moved was deleted in one place
    and added in another.

    Raises:
        UsageError: no Git, no working tree, or a revision that it does not know.
    """
    if not revision or revision.startswith("-"):
        raise UsageError(f"{revision!r} is no Git revision")
    root = Path(_git(["rev-parse", "--show-toplevel"]).rstrip("\n")).resolve()

    def listed(*args: str) -> frozenset[Path]:
        return frozenset(root / name for name in _git(args, root).split("\0") if name)

    changed = listed("diff", "--name-only", "--no-renames", "-z", "--merge-base", revision, "--")
    return Changes(root, changed, listed("ls-files", "-z"))


def only_changed(loading: Loading, changes: Changes) -> Loading:
    """What is left of `loading` without the files that did not change; a changed `defaults.yaml` changes its folder.

    A name that is taken twice stays a problem wherever it shows, for the other file may be the one that changed; so
    does a mistake in defaults that a changed file takes over, and a path that leads to no mission at all.

    Raises:
        UsageError: a file outside the working tree.
    """
    redefined = {path.parent for path in changes.changed if path.name == DEFAULTS_FILE}
    files = {file: _touched(Path(file), changes, redefined) for file in loading.files}
    folders = {Path(file).parent for file, touched in files.items() if touched}

    def shows(problem: Problem) -> bool:
        file = problem.where.file
        always = problem.code in ("mission/name-taken", "file/no-mission")
        return always or files.get(file, Path(file).parent in folders)

    return replace(
        loading,
        missions=tuple(loaded for loaded in loading.missions if files[loaded.file]),
        problems=tuple(problem for problem in loading.problems if shows(problem)),
        files=tuple(file for file in loading.files if files[file]),
    )


def _touched(file: Path, changes: Changes, folders: Collection[Path]) -> bool:
    defaults = file.parent / DEFAULTS_FILE
    by_defaults = file.parent.resolve() in folders or (defaults.exists() and changes.touch(defaults))
    return changes.touch(file) or by_defaults


def _git(args: Sequence[str], folder: Path | None = None) -> str:
    try:
        done = subprocess.run(["git", *args], cwd=folder, capture_output=True, text=True, check=True)  # noqa: S603, S607
    except FileNotFoundError:
        raise UsageError("git is not installed, and --changed-since asks it") from None
    except subprocess.CalledProcessError as exc:
        reason = " ".join(exc.stderr.split())[:300]
        hint = "in CI fetch the whole history (actions/checkout: `fetch-depth: 0`; GitLab: `GIT_DEPTH: 0`)"
        if args[0] == "rev-parse":
            hint = "--changed-since needs the Git repository of the mission files"
        raise UsageError(f"git {args[0]} failed: {reason}", hint=hint) from exc
    return done.stdout
