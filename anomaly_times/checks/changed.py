"""Which mission files a Git revision did not have, or had otherwise: what a pull request touched, and as it was."""

from __future__ import annotations

import subprocess
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from glob import glob, has_magic
from itertools import takewhile
from pathlib import Path, PurePath

from anomaly_times.errors import UsageError
from anomaly_times.loading import DEFAULTS_FILE, Loading
from anomaly_times.problems import Problem

__all__ = ["Changes", "changed_files", "files_before", "only_changed"]


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
            raise _outside(file, self.root)
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
    root = _root()

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


def files_before(revision: str, paths: Sequence[Path], into: Path) -> list[Path]:
    """Mission files as they were when this line of work left `revision`, with their defaults, in the folder `into`.

    The working tree is left alone.

    Args:
        revision: as for `changed_files`.
        paths: files, folders and globs, of now.
        into: empty; gets the YAML files of the folders that they name, by their paths in the repository.

    Returns:
        What `paths` are there, in their order; less those that were not there then.

    Raises:
        UsageError: as `changed_files`, or a path outside the working tree.
    """
    if not revision or revision.startswith("-"):
        raise UsageError(f"{revision!r} is no Git revision")
    root = _root()
    base = _git(["merge-base", revision, "HEAD"], root).strip()
    inside = [_inside(path, root) for path in paths]
    tree = _git(["ls-tree", "-r", "-z", base, "--", *(str(_folder(root, path)) for path in inside)], root)
    entries = [line.partition("\t") for line in tree.split("\0") if line]
    wanted = [(about.split(), name) for about, _, name in entries if PurePath(name).suffix in (".yaml", ".yml")]
    for ((mode, _, _), name), raw in zip(wanted, _blobs([about[2] for about, _ in wanted], root), strict=True):
        file = into / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if mode == _LINK:
            file.symlink_to(raw.decode())
        else:
            file.write_bytes(raw)
    places = [into / path for path in inside]
    return [place for place in places if place.exists() or (has_magic(str(place)) and glob(str(place), recursive=True))]  # noqa: PTH207


_LINK = "120000"


def _inside(path: Path, root: Path) -> Path:
    """A path or glob of now, from the root of the working tree."""
    plain = Path(*takewhile(lambda part: not has_magic(part), path.parts))
    # The last part may be a link, which stands where it stands.
    base = plain.parent.resolve() / plain.name if plain.name not in ("", "..") else plain.resolve()
    whole = base / path.relative_to(plain)
    if not base.is_relative_to(root):
        raise _outside(path, root)
    return whole.relative_to(root)


def _folder(root: Path, path: Path) -> Path:
    """The folder that holds what a path or glob stands for."""
    plain = Path(*takewhile(lambda part: not has_magic(part), path.parts))
    return plain if plain != path or (root / plain).is_dir() else plain.parent


def _outside(file: Path, root: Path) -> UsageError:
    return UsageError(
        f"{file} is not in the Git repository {root}, so nothing tells whether it changed",
        hint="run it in the repository of the files, or without --changed-since",
    )


def _blobs(names: Sequence[str], root: Path) -> Iterator[bytes]:
    """The contents of objects of the repository."""
    rest = _git_bytes(["cat-file", "--batch"], root, "\n".join([*names, ""]).encode()) if names else b""
    for _ in names:
        head, _, rest = rest.partition(b"\n")
        size = int(head.split()[-1])
        yield rest[:size]
        rest = rest[size + 1 :]


def _root() -> Path:
    return Path(_git(["rev-parse", "--show-toplevel"]).rstrip("\n")).resolve()


def _git(args: Sequence[str], folder: Path | None = None) -> str:
    return _git_bytes(args, folder).decode(errors="surrogateescape")


def _git_bytes(args: Sequence[str], folder: Path | None = None, given: bytes = b"") -> bytes:
    try:
        done = subprocess.run(["git", *args], cwd=folder, input=given, capture_output=True, check=True)  # noqa: S603, S607
    except FileNotFoundError:
        raise UsageError("git is not installed, and --changed-since asks it") from None
    except subprocess.CalledProcessError as exc:
        reason = " ".join(exc.stderr.decode(errors="replace").split())[:300]
        hint = "in CI fetch the whole history (actions/checkout: `fetch-depth: 0`; GitLab: `GIT_DEPTH: 0`)"
        if args[0] == "rev-parse":
            hint = "--changed-since needs the Git repository of the mission files"
        raise UsageError(f"git {args[0]} failed: {reason}", hint=hint) from exc
    return done.stdout
