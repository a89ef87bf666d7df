"""`at mission validate`, `schema` and `init` as a user types them."""

from __future__ import annotations

import json
import math
import subprocess
import time
from pathlib import Path

import pytest

from anomaly_times.checks import check_missions
from anomaly_times.cli.mission_files import Form
from anomaly_times.loading import load_missions
from anomaly_times.presets import PRESETS
from anomaly_times.schema import file_schema, reference
from anomaly_times.stores.promql import parse_query
from anomaly_times.testing import MemoryStore
from tests.cli.conftest import AT, QUERY, Run
from tests.servers import Server, fetch, free_port

GOOD = "name: good\npromql: sum(rate(requests_total[5m]))\n"
WARNED = "name: warned\npromql: requests_total\n"
BROKEN = "name: broken\npromql: sum(requests\n"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(**files: str) -> None:
    for name, text in files.items():
        path = Path("missions") / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def test_validate_looks_at_missions_unless_told_otherwise(at: Run) -> None:
    write(good=GOOD)
    result = at("mission", "validate", "--offline")
    assert (result.exit_code, result.stdout) == (0, "1 mission: 0 errors, 0 warnings\n")
    assert at("mission", "validate", "--offline", "missions/good.yaml").exit_code == 0


def test_validate_without_missions_is_wrong_usage(at: Run) -> None:
    result = at("mission", "validate", "--offline")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "there is no missions/" in result.stderr


def test_a_folder_without_missions_does_not_pass_for_one_that_is_well(at: Run) -> None:
    write(good=GOOD)
    Path("mission").mkdir()
    result = at("mission", "validate", "--offline", "mission")
    assert (result.exit_code, result.stdout.splitlines()[0]) == (3, "mission error file/no-mission")


@pytest.mark.parametrize(
    ("files", "options", "code"),
    [
        ({"good": GOOD}, [], 0),
        ({"warned": WARNED}, [], 0),
        ({"warned": WARNED}, ["--fail-on", "warning"], 3),
        ({"broken": BROKEN}, [], 3),
        ({"good": GOOD}, ["--fail-on", "warning"], 0),
    ],
)
def test_the_exit_code_says_whether_problems_are_bad_enough(
    at: Run, files: dict[str, str], options: list[str], code: int
) -> None:
    write(**files)
    assert at("mission", "validate", "--offline", *options).exit_code == code


def test_the_table_names_place_code_and_remedy(at: Run) -> None:
    write(broken=BROKEN, warned=WARNED)
    lines = at("mission", "validate", "--offline").stdout.splitlines()
    assert lines[0] == "missions/broken.yaml:2 error promql/syntax (broken)"
    assert lines[2:4] == ["      sum(requests", "         ^"]
    assert lines[4] == "missions/warned.yaml:2 warning promql/bare-counter (warned)"
    assert lines[6] == "    → watch how fast it grows: rate(requests_total[5m])"
    assert lines[-1] == "2 missions: 1 error, 1 warning"


def test_json_is_alone_on_stdout_and_whole(at: Run) -> None:
    write(a=WARNED + "silence: [{code: promql/bare-counter, reason: known}]\n", b=BROKEN)
    result = at("mission", "validate", "--offline", "-o", "json")
    document = json.loads(result.stdout)
    assert (document["schema"], document["missions"], document["unchecked"]) == (1, 2, {})
    (problem,) = document["problems"]
    assert (problem["code"], problem["file"], problem["line"], problem["field"]) == (
        "promql/syntax",
        "missions/b.yaml",
        2,
        "promql",
    )
    assert result.stdout.count("\n") == 1
    assert [(p["code"], p["reason"]) for p in document["silenced"]] == [("promql/bare-counter", "known")]


def test_github_gets_annotations_on_the_right_lines(at: Run) -> None:
    write(**{"a,b": BROKEN.replace("broken", "x"), "w": WARNED})
    lines = at("mission", "validate", "--offline", "--output", Form.GITHUB).stdout.splitlines()
    assert lines[0].startswith(
        "::error file=missions/a%2Cb.yaml,line=2,title=promql/syntax x::the query does not parse"
    )
    assert lines[0].endswith("is not closed%0A  sum(requests%0A     ^")
    assert lines[1].startswith("::warning file=missions/w.yaml,line=2,title=promql/bare-counter warned::")
    assert len(lines) == 2


def test_outside_of_git_nobody_speaks_of_histories(at: Run) -> None:
    write(good=GOOD)
    result = at("mission", "validate", "--offline", "--changed-since", "main")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.endswith("hint: --changed-since needs the Git repository of the mission files\n")


def test_a_source_that_is_away_is_said_and_exits_4(at: Run) -> None:
    write(good=GOOD)
    url = f"http://127.0.0.1:{free_port()}"
    result = at("mission", "validate", "--url", url)
    assert result.exit_code == 4
    assert result.stdout == "1 mission: 0 errors, 0 warnings\n"
    assert "live checks of 1 mission did not run" in result.stderr
    assert "cannot be reached" in result.stderr
    write(broken=BROKEN)
    assert at("mission", "validate", "--url", url).exit_code == 3


def test_a_source_that_the_settings_do_not_know_is_a_problem(at: Run) -> None:
    write(good=GOOD + "source: nowhere\n")
    result = at("mission", "validate")
    assert result.exit_code == 3
    assert "mission/source" in result.stdout
    # Where nothing is set, offline cannot know.
    assert at("mission", "validate", "--offline").exit_code == 0


def test_a_pull_request_is_held_to_what_it_touched(at: Run) -> None:
    write(old=BROKEN)
    for args in (["init", "-qb", "main"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@example.com", *args], check=True)
    write(new=WARNED)
    result = at("mission", "validate", "--offline", "--changed-since", "main")
    assert result.exit_code == 0
    assert "warned" in result.stdout
    assert "broken" not in result.stdout
    assert at("mission", "validate", "--offline", "--changed-since", "nonsense").exit_code == 2


def test_schema_prints_what_the_docs_hold(at: Run) -> None:
    assert json.loads(at("mission", "schema").stdout) == file_schema()
    assert at("mission", "schema", "--output", "markdown").stdout == reference()


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["name"],
        ["--promql", "x"],
        ["name", "--promql", "x", "--preset", "red"],
        ["No Name", "--promql", QUERY],
        ["--preset", "nonsense"],
    ],
)
def test_init_says_what_it_needs(at: Run, store: MemoryStore, args: list[str]) -> None:
    result = at("mission", "init", *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert list(Path().rglob("*.yaml")) == []


def test_init_never_overwrites(at: Run, store: MemoryStore) -> None:
    write(mine=GOOD)
    result = at("mission", "init", "mine", "--promql", QUERY)
    assert result.exit_code == 2
    assert "is not touched" in result.stderr
    assert Path("missions/mine.yaml").read_text() == GOOD


def test_init_of_nothing_writes_nothing(at: Run, store: MemoryStore) -> None:
    assert at("mission", "init", "x", "--promql", "unknown").exit_code == 3
    assert not Path("missions").exists()


def test_init_fits_a_file_to_the_data(at: Run, store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    import anomaly_times.cli.options as options

    monkeypatch.setattr(options, "utc_now", lambda: AT)
    result = at("mission", "init", "it's", "--promql", QUERY)
    assert result.exit_code == 2
    result = at("mission", "init", "requests", "--promql", QUERY)
    assert (result.exit_code, result.stderr) == (0, "")
    text = Path("missions/requests.yaml").read_text()
    loading = load_missions(["missions"])
    report = check_missions(loading, now=AT, stores={"": store})
    assert {problem.code for problem in report.problems} == {"cost/estimate"}
    (mission,) = (loaded.mission for loaded in loading.missions)
    assert (mission.name, mission.promql, mission.detect.direction) == ("requests", QUERY, "both")
    assert mission.step.total_seconds() == 600
    assert mission.forecast.lookback.days == 14
    assert "# a rhythm of a day in 3 of 3 series" in text
    fields = [line for line in text.splitlines() if line.startswith("  ") and "#" not in line]
    assert "  horizon: 2h" in fields


def test_every_query_of_every_preset_parses() -> None:
    templates = [(p.by[0], template) for p in PRESETS.values() for template in p.templates]
    assert len(templates) > 20
    for by, template in templates:
        promql = template.promql.replace("$window", "5m").replace("$by", by).replace("$code", "code")
        assert parse_query(promql).problem == "", template.name


def load(server: Server, *rows: tuple[dict[str, str], float]) -> None:
    """Two days of a rhythm with a sample every 15 s; counters where the second is above 0."""
    now = int(time.time()) // 15 * 15
    lines = []
    for labels, slope in rows:
        times = range(now - 2 * 86400, now + 15, 15)
        values = [slope * (t - now + 3 * 86400) if slope else 0.5 + 0.1 * math.sin(t / 3600) for t in times]
        lines.append(json.dumps({"metric": labels, "values": values, "timestamps": [t * 1000 for t in times]}))
    fetch(f"{server.url}/api/v1/import", data="\n".join(lines).encode())
    server.flush()


@pytest.mark.servers
def test_init_makes_a_rate_of_a_counter_and_its_file_passes(at: Run, vm_server: Server) -> None:
    load(vm_server, ({"__name__": "ini_errors_total", "job": "a'b"}, 2.0))
    made = at("mission", "init", "errs", "--promql", 'ini_errors_total{job="a\'b"}', "--url", vm_server.url)
    assert made.exit_code == 0, made.stderr
    (loaded,) = load_missions(["missions/errs.yaml"]).missions
    assert loaded.mission.promql == 'rate(ini_errors_total{job="a\'b"}[5m])'
    assert loaded.mission.detect.direction == "above"
    assert loaded.mission.step.total_seconds() == 60
    checked = at("mission", "validate", "--url", vm_server.url, "--fail-on", "warning")
    assert checked.exit_code == 0, checked.stdout


@pytest.mark.servers
def test_a_preset_takes_what_is_there_and_says_what_is_not(at: Run, vm_server: Server) -> None:
    load(
        vm_server,
        ({"__name__": "node_load5", "instance": "a"}, 0),
        ({"__name__": "node_cpu_seconds_total", "instance": "a", "mode": "idle"}, 0.5),
        ({"__name__": "http_requests_total", "job": "web", "status": "200"}, 3.0),
        ({"__name__": "http_requests_total", "job": "web", "status": "500"}, 0.1),
    )
    made = at("mission", "init", "--preset", "node-exporter", "--url", vm_server.url)
    assert made.exit_code == 0, made.stderr
    assert "node-memory left out: nothing matches node_memory_MemAvailable_bytes" in made.stderr
    red = at("mission", "init", "--preset", "red", "--url", vm_server.url, "--out", "missions/services.yml")
    assert red.exit_code == 0, red.stderr
    missions = {loaded.mission.name: loaded.mission for loaded in load_missions(["missions"]).missions}
    assert set(missions) == {"node-load", "node-cpu", "http-requests-rate", "http-requests-errors"}
    assert missions["http-requests-errors"].promql == ('sum by (job) (rate(http_requests_total{status=~"5.."}[5m]))')
    checked = at("mission", "validate", "--url", vm_server.url)
    assert checked.exit_code == 0, checked.stdout

    nothing = at("mission", "init", "--preset", "kubernetes", "--url", vm_server.url)
    assert nothing.exit_code == 3
    assert "no metric of the preset kubernetes" in nothing.stderr
