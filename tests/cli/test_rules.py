"""`at rules` writes a file that a rule engine may read at any time, and says where it is out of date."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import Run


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "missions").mkdir()
    (tmp_path / "missions" / "a.yaml").write_text("name: a\npromql: up\nalert: {for: 10m}\n")
    return tmp_path


def names(text: str) -> list[str]:
    return [group["name"] for group in yaml.safe_load(text)["groups"]]


def test_rules_are_written_to_stdout_and_nothing_else_is(at: Run) -> None:
    result = at("rules")
    assert (result.exit_code, result.stderr) == (0, "")
    assert names(result.stdout) == ["at:a", "at"]
    assert "for: 10m" in result.stdout
    assert "keep_firing_for: 1h" in result.stdout


def test_what_is_not_wanted_is_left_out(at: Run) -> None:
    result = at("rules", "missions", "--no-platform", "--no-keep-firing", "--page", "p1")
    assert names(result.stdout) == ["at:a"]
    assert "keep_firing_for" not in result.stdout
    assert "severity: p1" in result.stdout


def test_check_fails_until_the_file_is_what_the_missions_say(at: Run, folder: Path) -> None:
    out = folder / "rules.yaml"
    assert at("rules", "--out", out, "--check").exit_code == 3
    assert not out.exists()
    assert at("rules", "--out", out).exit_code == 0
    assert out.read_text() == at("rules").stdout
    assert at("rules", "--out", out, "--check").exit_code == 0
    (folder / "missions" / "a.yaml").write_text("name: a\npromql: up\nstep: 5m\n")
    assert at("rules", "--out", out, "--check").exit_code == 3
    assert [file.name for file in folder.iterdir() if file.name.startswith(".")] == []


def test_a_link_stays_one(at: Run, folder: Path) -> None:
    (folder / "real.yaml").write_text("")
    (folder / "link.yaml").symlink_to(folder / "real.yaml")
    at("rules", "--out", "link.yaml")
    assert (folder / "link.yaml").is_symlink()
    assert names((folder / "real.yaml").read_text()) == ["at:a", "at"]


def test_problems_of_missions_are_told_and_nothing_is_written(at: Run, folder: Path) -> None:
    (folder / "missions" / "b.yaml").write_text("name: b\npromql: up\nalert: {points: 9 of 5}\n")
    result = at("rules", "--out", "rules.yaml")
    assert result.exit_code == 3
    assert "missions/b.yaml:3" in result.stderr
    assert not (folder / "rules.yaml").exists()


@pytest.mark.parametrize(
    ("args", "says"),
    [(["--check"], "--out FILE"), (["--out", "no/where.yaml"], "no/where.yaml"), (["--out", "."], ".")],
)
def test_wrong_usage_is_told(at: Run, args: list[str], says: str) -> None:
    result = at("rules", *args)
    assert result.exit_code == 2
    assert says in result.stderr


def test_missions_of_several_sources_get_a_file_each(at: Run, folder: Path) -> None:
    (folder / "anomaly-times.yaml").write_text(
        "source: near\nsources: {near: {url: http://localhost:1}, far: {url: http://localhost:2}}\n"
    )
    (folder / "missions" / "b.yaml").write_text("name: b\npromql: up\nsource: far\n")
    both = at("rules")
    assert both.exit_code == 3
    assert "far, near" in both.stderr
    assert names(at("rules", "--source", "near").stdout) == ["at:a", "at"]
    assert names(at("rules", "--source", "far").stdout) == ["at:b", "at"]
    assert at("rules", "--source", "nowhere").exit_code == 2
