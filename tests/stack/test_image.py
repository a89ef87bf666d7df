"""What the Dockerfile names exists, and what the charts start is in it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_extras_of_the_image_are_extras_of_the_package() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys()
    named = re.findall(r"EXTRAS=(\S+)", DOCKERFILE)
    assert len(named) == 2
    for each in named:
        assert set(each.split(",")) <= extras


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    kept = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    copied = [name for line in re.findall(r"^COPY (?!--)(.+) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()]
    assert sorted(copied) == sorted(kept)
    assert [name for name in copied if not (ROOT / name).exists()] == []


def test_it_begins_as_prefects_charts_expect_and_not_as_root() -> None:
    # The charts start /usr/bin/tini -g -- /opt/prefect/entrypoint.sh, whatever the image says.
    runtime = DOCKERFILE[DOCKERFILE.index(" AS runtime") :]
    assert re.search(r"apt-get install .* tini", runtime)
    assert "/opt/prefect/entrypoint.sh" in runtime
    assert re.findall(r"^USER (.+)$", runtime, re.MULTILINE) == ["1001:1001"]
    assert not re.search(r"^FROM \S+:latest|^ADD ", DOCKERFILE, re.MULTILINE)
