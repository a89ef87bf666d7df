"""`at dashboards`: files for Grafana."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run


def test_the_files_are_written_and_named(at: Run, tmp_path: Path) -> None:
    missions = tmp_path / "missions"
    missions.mkdir()
    (missions / "m.yaml").write_text("name: shop-traffic\npromql: sum(rate(requests_total[5m]))\n")
    out = tmp_path / "new" / "grafana"
    result = at("dashboards", missions, "--out", out, "--datasource", "vm")
    assert result.exit_code == 0, result.stderr
    files = [Path(line) for line in result.stdout.splitlines()]
    assert files == [out / name for name in ("overview.json", "mission.json", "platform.json")]
    assert "shop-traffic : sum(rate(requests_total[5m]))" in (out / "mission.json").read_text()
    assert all(json.loads(file.read_text())["templating"]["list"][0]["current"]["value"] == "vm" for file in files)


def test_without_files_the_missions_of_this_folder_count_and_else_any(
    at: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert at("dashboards").exit_code == 0
    assert "label_values(at_mission_info, mission)" in Path("dashboards/mission.json").read_text()
    Path("missions").mkdir()
    Path("missions/m.yaml").write_text("name: here\npromql: up\n")
    assert at("dashboards").exit_code == 0
    assert '"query": "here : up"' in Path("dashboards/mission.json").read_text()


def test_nothing_is_written_where_a_mission_is_wrong_and_a_bad_folder_is_named(at: Run, tmp_path: Path) -> None:
    wrong = tmp_path / "m.yaml"
    wrong.write_text("name: m\n")
    result = at("dashboards", wrong, "--out", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (3, "")
    assert not (tmp_path / "out").exists()
    wrong.write_text("name: m\npromql: up\n")
    result = at("dashboards", wrong, "--out", wrong)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"the dashboards cannot be written to {wrong}" in result.stderr
    assert "--out FOLDER" in result.stderr
