"""`at backtest --changed-since`: what a pull request touched, before and after."""

from __future__ import annotations

import json
import subprocess
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from anomaly_times.backtest import AS_IT_IS, BEFORE, Trial, Version
from anomaly_times.backtest.alerts import find_alerts
from anomaly_times.cli.backtest_changes import ChangesView, Touched
from anomaly_times.cli.options import SectionsForm
from anomaly_times.cli.render import show_sections
from anomaly_times.mission import Mission
from anomaly_times.panel import Grid, Labels, Panel, Scores
from anomaly_times.testing import MemoryStore
from tests.cli.conftest import AT, Run

WINDOW = ("--at", "2026-03-01T12:00:30Z", "--last", "2d", "-j", 1, "--changed-since", "main")
DEFAULTS = "step: 10m\nforecast: {model: seasonal_naive, every: 6h, lookback: 9d}\ndetect: {evidence: point}\n"
WEB = "name: web\npromql: requests\nalert: {for: 10m}\n"
JUMP = "incidents:\n- {name: jump, start: 2026-03-01 11:40, end: 2026-03-01 12:00}\n"


def git(folder: Path, *args: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", *who, *args], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def folder(store: MemoryStore, tmp_path: Path) -> Path:
    """`missions/` of a repository with three missions, on a branch off main."""
    made = tmp_path / "missions"
    made.mkdir()
    (made / "defaults.yaml").write_text(DEFAULTS)
    (made / "web.yaml").write_text(WEB)
    (made / "shop.yaml").write_text("name: shop\npromql: requests\nforecast: {level: 99}\n")
    (made / "old.yaml").write_text("name: old\npromql: requests\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    git(tmp_path, "checkout", "-qb", "mine")
    return made


def changes(at: Run, *args: object) -> dict[str, dict[str, object]]:
    result = at("backtest", *WINDOW, "-o", "json", *args)
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert (document["kind"], document["since"]) == ("backtest-changes", "main")
    return {each["mission"]: each for each in document["missions"]}


def test_new_changed_and_deleted_missions_stand_before_and_after(at: Run, folder: Path) -> None:
    (folder / "web.yaml").write_text(WEB + "# A comment.\ndetect: {min_relative_deviation: 90%}\n" + JUMP)
    (folder / "shop.yaml").write_text("# Only a comment.\n" + (folder / "shop.yaml").read_text())
    (folder / "old.yaml").unlink()
    (folder / "new.yaml").write_text("name: new\npromql: requests\n")
    found = changes(at)
    assert {name: each["change"] for name, each in found.items()} == {
        "new": "new",
        "web": "changed",
        "old": "deleted",
    }
    web = found["web"]
    fields = {field["field"]: (field["before"], field["after"]) for field in web["fields"]}  # type: ignore[attr-defined]
    assert fields["detect.min_relative_deviation"] == ([0, 0], [0.9, 0.9])
    assert set(fields) == {"detect.min_relative_deviation", "incidents"}
    before, after = web["before"], web["after"]
    assert (before["alerts"]["count"], after["alerts"]["count"]) == (1, 0)  # type: ignore[index]
    # Both are judged by what is labelled now.
    assert (before["incidents"]["found"], after["incidents"]["missed"]) == (1, 1)  # type: ignore[index]
    assert before["accuracy"] == after["accuracy"]  # type: ignore[index]
    assert (found["new"]["before"], found["old"]["after"]) == (None, None)
    assert found["old"]["before"]["alerts"]["count"] == 1  # type: ignore[index]


def test_markdown_for_a_comment_has_both_sides(at: Run, folder: Path) -> None:
    (folder / "web.yaml").write_text(WEB + "detect: {min_relative_deviation: 90%}\n" + JUMP)
    result = at("backtest", *WINDOW, "-o", "markdown")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("### 1 mission changed since main\n\nreplayed from 2026-02-27 12:10 to 2026-03-01")
    assert "alerts a week: 3.50 before, 0.00 after" in result.stdout
    assert "| web | changed | 3.50 → 0.00 | 1 of 1 → 0 of 1 | 0 | 10m → – |" in result.stdout
    assert r"| web | detect.min\_relative\_deviation | \[0.0, 0.0\] → \[0.9, 0.9\] |" in result.stdout


def test_an_edit_of_defaults_touches_all_that_take_them_over(at: Run, folder: Path) -> None:
    (folder / "defaults.yaml").write_text("forecast: {level: 99}\n" + DEFAULTS.replace("forecast: {", "#"))
    (folder / "defaults.yaml").write_text(DEFAULTS.replace("lookback: 9d", "lookback: 9d, level: 99"))
    assert set(changes(at)) == {"web", "old"}


def test_nothing_touched_is_nothing_replayed(at: Run, folder: Path, store: MemoryStore) -> None:
    store.series.clear()
    (folder / "web.yaml").write_text("# Why it is there.\n" + WEB)
    result = at("backtest", *WINDOW)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "No mission changed since main\nnothing was replayed\n"


def test_values_are_read_once_where_the_query_stayed(at: Run, folder: Path, store: MemoryStore) -> None:
    read: list[str] = []
    answer = store.read

    def counted(promql: str, grid: Grid, *, max_series: int = 10_000) -> Panel:
        read.append(promql)
        return answer(promql, grid, max_series=max_series)

    store.read = counted  # type: ignore[method-assign]
    store.series["other"] = store.series["requests"]
    (folder / "web.yaml").write_text(WEB.replace("10m", "20m"))
    (folder / "shop.yaml").write_text("name: shop\npromql: other\nforecast: {level: 99}\n")
    (folder / "old.yaml").write_text("name: old\npromql: requests\ndescription: says more\n")
    found = changes(at)
    assert sorted(read) == ["other", "requests", "requests", "requests"]
    assert found["old"]["alike"] is True
    assert found["old"]["before"] == found["old"]["after"]


def test_an_old_version_that_does_not_load_is_said_and_the_new_one_shown(at: Run, folder: Path) -> None:
    (folder / "web.yaml").write_text(WEB.replace("10m", "soon"))
    (folder / "shop.yaml").write_text("name: [\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "two")
    git(folder, "branch", "-f", "main")
    (folder / "web.yaml").write_text(WEB)
    (folder / "shop.yaml").write_text("name: shop\npromql: requests\n")
    found = changes(at)
    assert {name: (each["change"], each["before"]) for name, each in found.items()} == {
        "shop": ("changed", None),
        "web": ("changed", None),
    }
    assert "before it did not load: alert.for: 'soon' is not a duration" in str(found["web"]["remark"])
    assert "before it did not load: no valid YAML" in str(found["shop"]["remark"])
    assert str(folder.parent) not in str(found)


def test_a_new_version_that_does_not_load_is_an_error(at: Run, folder: Path) -> None:
    (folder / "web.yaml").write_text(WEB.replace("10m", "soon"))
    result = at("backtest", *WINDOW)
    assert result.exit_code == 3
    assert "the mission files have problems" in result.stderr


def test_check_is_about_missions_as_they_are(at: Run, folder: Path) -> None:
    gate = "backtest: {max_alerts_per_week: 1}\n"
    (folder / "web.yaml").write_text(WEB + gate)
    result = at("backtest", *WINDOW, "--check")
    assert result.exit_code == 3
    assert "web: 3.50 alerts a week, and 1 are allowed" in result.stderr
    (folder / "web.yaml").write_text(WEB + gate + "detect: {min_relative_deviation: 90%}\n")
    assert at("backtest", *WINDOW, "--check").exit_code == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--changed-since", "nonsense"), "git diff failed: fatal: "),
        (("--compare", "level=99"), "--compare does not go with --changed-since"),
        (("--suggest",), "--suggest does not go with --changed-since"),
        (("--plot", "page.html"), "--plot does not go with --changed-since"),
        (("--promql", "requests"), "FILES and --promql say two things"),
        (("missing",), "there is no file or folder missing"),
    ],
)
def test_what_makes_no_sense_is_refused(at: Run, folder: Path, args: tuple[str, ...], message: str) -> None:
    result = at("backtest", *WINDOW, *args)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {message}")


def test_files_that_git_does_not_have_are_refused(
    at: Run, folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "web.yaml").write_text(WEB)
    result = at("backtest", elsewhere, *WINDOW)
    assert result.exit_code == 2
    assert "is not in the Git repository" in result.stderr
    monkeypatch.chdir(elsewhere)
    result = at("backtest", "web.yaml", *WINDOW)
    assert result.exit_code == 2
    assert "git rev-parse failed" in result.stderr


def test_a_thousand_changed_missions_still_fit_into_a_comment(capsys: pytest.CaptureFixture[str]) -> None:
    grid = Grid.ending(AT, timedelta(minutes=10), 144)
    zeros = np.zeros((1, grid.n))
    touched, pairs = [], []
    for i in range(1000):
        before, after = (
            Mission.model_validate({"name": f"m{i}", "promql": f'sum_over_{side}{{a=~"x|[y]*"}}' + "_" * 500})
            for side in ("one", "two")
        )
        scores = Scores((Labels.of({"a": "b"}),), grid, zeros, zeros, zeros, zeros, zeros)
        touched.append(Touched(Version(before, after)))
        pairs.append(
            tuple(
                Trial(each, variant, grid, scores=scores, alerts=find_alerts(each, scores), notes=("x_" * 300,))
                for each, variant in ((before, BEFORE), (after, AS_IT_IS))
            )
        )
    show_sections(ChangesView("main", tuple(touched), tuple(pairs)), SectionsForm.MARKDOWN)  # type: ignore[arg-type]
    text = capsys.readouterr().out
    assert 30_000 < len(text) < 65_536
    assert "of 1,000: \\`--output json\\` has all" in text
