from __future__ import annotations

import tempfile
import time
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomaly_times import loading as loading_module
from anomaly_times.errors import UsageError
from anomaly_times.loading import Loading, dump_mission, load_missions
from anomaly_times.mission import Mission


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(folder: Path, **files: str) -> Loading:
    """Load these files (double underscores are slashes), all below `folder`."""
    for name, text in files.items():
        path = Path(name.replace("__", "/") + ".yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return load_missions(["."])


def told(loading: Loading) -> list[tuple[str, str, str]]:
    return [(str(p.where), p.where.field, p.code) for p in loading.problems]


def test_a_file_holds_one_mission_a_document_or_a_list(folder: Path) -> None:
    loading = load(
        folder,
        one="name: a\npromql: up\n---\nname: b\npromql: down\n",
        two="defaults: {step: 5m}\nmissions:\n  - {name: c, promql: x}\n  - {name: d, promql: y, step: 1h}\n",
    )
    assert loading.problems == ()
    assert [(m.mission.name, m.mission.step, m.file, m.line) for m in loading.missions] == [
        ("a", timedelta(minutes=1), "one.yaml", 1),
        ("b", timedelta(minutes=1), "one.yaml", 4),
        ("c", timedelta(minutes=5), "two.yaml", 3),
        ("d", timedelta(hours=1), "two.yaml", 4),
    ]


def test_a_folders_defaults_go_for_its_files_and_own_fields_win(folder: Path) -> None:
    loading = load(
        folder,
        x__defaults="step: 5m\nforecast: {every: 2h, lookback: 7d}\n",
        x__a="name: a\npromql: up\nforecast: {every: 3h}\n",
        b="name: b\npromql: up\n",
    )
    a, b = sorted((m.mission for m in loading.missions), key=lambda m: m.name)
    assert (a.step, a.forecast.every, a.forecast.lookback) == (
        timedelta(minutes=5),
        timedelta(hours=3),
        timedelta(days=7),
    )
    assert b.step == timedelta(minutes=1)


def test_for_each_makes_alike_missions_of_one_template(folder: Path) -> None:
    loading = load(
        folder,
        many="""
name: cpu-${each.zone}
promql: avg(cpu{zone="${each.zone}"})
max_series: ${each.most}
for_each:
  - {zone: eu, most: 5}
  - {zone: us, most: 7}
""",
        plain="name: q-${each}\npromql: ${each}\nfor_each: [up, down]\n",
    )
    assert loading.problems == ()
    assert [(m.mission.name, m.mission.promql, m.mission.max_series) for m in loading.missions] == [
        ("cpu-eu", 'avg(cpu{zone="eu"})', 5),
        ("cpu-us", 'avg(cpu{zone="us"})', 7),
        ("q-up", "up", 10_000),
        ("q-down", "down", 10_000),
    ]


def test_every_problem_of_every_file_is_told_with_its_line_and_field(folder: Path) -> None:
    loading = load(
        folder,
        a="name: a\npromql: up\nforcast: {}\nforecast:\n  level: 200\n  every: 0s\n",
        b="promql: up\n",
        c="name: c\npromql: up\nname: d\n",
        d="- 1\n",
        e="missions: 3\n",
        f="missions: [4]\nname: x\n",
        g="name: g\npromql: up\n",
    )
    assert [m.mission.name for m in loading.missions] == ["g"]
    assert sorted(told(loading)) == [
        ("a.yaml:3", "forcast", "mission/unknown-field"),
        ("a.yaml:5", "forecast.level", "mission/invalid-value"),
        ("a.yaml:6", "forecast.every", "mission/invalid-value"),
        ("b.yaml:1", "name", "mission/missing-field"),
        ("c.yaml:3", "", "file/yaml"),
        ("d.yaml:1", "", "file/shape"),
        ("e.yaml:1", "", "file/shape"),
        ("f.yaml:1", "", "file/shape"),
        ("f.yaml:2", "", "file/shape"),
    ]
    hints = {p.where.field: p.hint for p in loading.problems}
    assert hints["forcast"] == "did you mean 'forecast'?"


def test_the_same_name_in_two_files_names_both(folder: Path) -> None:
    loading = load(folder, a="name: x\npromql: up\n", b="promql: up\nname: x\n")
    (problem,) = loading.problems
    assert str(problem.where) == "b.yaml:2"
    assert "a.yaml:1" in problem.message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("for_each: []", "list of 1"),
        ("for_each: 3", "list of 1"),
        ("for_each: [{b: 1}]", "has no 'a'"),
        ("for_each: [x]", "has no 'a'"),
    ],
)
def test_a_template_that_cannot_be_filled_is_a_problem(folder: Path, text: str, words: str) -> None:
    loading = load(folder, t=f"name: x-${{each.a}}\npromql: up\n{text}\n")
    assert loading.missions == ()
    (problem,) = loading.problems
    assert (problem.code, str(problem.where)) == ("file/for-each", "t.yaml:3")
    assert words in problem.message


def test_a_wrong_value_is_told_with_its_field(folder: Path) -> None:
    loading = load(folder, a="name: a\npromql: up\nforecast: {every: 90, lookback: -1d, level: 101}\n")
    assert [problem.message.partition(":")[0] for problem in loading.problems] == [
        "forecast.every",
        "forecast.lookback",
        "forecast.level",
    ]
    assert loading.problems[2].message == "forecast.level: must be less than 100"


def test_a_path_without_a_mission_is_a_problem(folder: Path) -> None:
    load(folder, a="name: a\npromql: up\n", empty="# later\n", broken="name: [\n", sub__defaults="step: 5m\n")
    assert load_missions(["a.yaml", "sub/defaults.yaml", "."]).problems == load_missions(["broken.yaml"]).problems
    for nothing in ("empty.yaml", "sub", "emp*.yaml"):
        loading = load_missions(["a.yaml", nothing])
        (problem,) = loading.problems
        assert (problem.code, str(problem.where)) == ("file/no-mission", nothing)
        assert [loaded.mission.name for loaded in loading.missions] == ["a"]


def test_files_folders_and_globs_name_each_file_once(folder: Path) -> None:
    load(folder, a="name: a\npromql: up\n", sub__b="name: b\npromql: up\n")
    Path(".hidden").mkdir()
    Path(".hidden/c.yaml").write_text("name: c\npromql: up\n")
    Path("notes.txt").write_text("no mission")
    assert load_missions(["a.yaml", ".", "*.yaml", str(folder / "sub" / "*.yaml")]).files == ("a.yaml", "sub/b.yaml")


def test_paths_that_are_not_there_are_refused(folder: Path) -> None:
    for path in ("nowhere", "no/*.yaml"):
        with pytest.raises(UsageError):
            load_missions([path])


def test_broken_defaults_are_a_problem_of_their_own_file(folder: Path) -> None:
    loading = load(folder, defaults="- 1\n", a="name: a\npromql: up\n")
    assert told(loading) == [("defaults.yaml:1", "", "file/shape")]


def test_a_mistake_in_defaults_is_told_once_and_where_it_is(folder: Path) -> None:
    loading = load(
        folder,
        defaults="step: 5m\nforecast:\n  level: 200\n",
        a="name: a\npromql: up\nforecast: {every: 2h}\n",
        b="defaults:\n  colour: red\n  detect: {direction: up}\n"
        "missions:\n- {name: c, promql: x}\n- {name: d, promql: y}\n- {name: e, promql: z, forecast: {level: 300}}\n",
    )
    assert loading.missions == ()
    assert sorted((*told, p.mission) for told, p in zip(told(loading), loading.problems, strict=True)) == [
        ("b.yaml:2", "colour", "mission/unknown-field", ""),
        ("b.yaml:3", "detect.direction", "mission/invalid-value", ""),
        ("b.yaml:7", "forecast.level", "mission/invalid-value", "e"),
        ("defaults.yaml:3", "forecast.level", "mission/invalid-value", ""),
    ]


def test_a_place_is_where_the_field_was_written(folder: Path) -> None:
    loading = load(
        folder,
        defaults="forecast:\n  every: 1h\n  lookback: 7d\nsilence:\n- {code: a, reason: b}\n- {code: c, reason: d}\n",
        m="defaults:\n  forecast: {every: 2h}\n"
        "missions:\n- name: m\n  promql: up\n  forecast:\n    horizon: 4h\n"
        "- name: n\n  promql: up\n  silence: [{code: e, reason: f}]\n",
    )
    m, n = loading.missions
    places = [
        (m, ("forecast", "horizon"), "m.yaml:7", False),
        (m, ("forecast", "every"), "m.yaml:2", True),
        (m, ("forecast", "lookback"), "defaults.yaml:3", True),
        (m, ("forecast", "level"), "m.yaml:6", False),
        (m, ("silence", 1), "defaults.yaml:6", True),
        (m, ("step",), "m.yaml:4", False),
        (m, (), "m.yaml:4", False),
        (n, ("forecast", "horizon"), "m.yaml:8", False),
        (n, ("silence", 0, "code"), "m.yaml:10", False),
    ]
    for loaded, path, place, inherited in places:
        assert (str(loaded.where(*path)), loaded.inherits(*path)) == (place, inherited), path


def test_a_cadence_of_a_mission_stands_for_that_of_its_defaults(folder: Path) -> None:
    loading = load(
        folder,
        defaults="forecast: {every: 2h}\ndetect: {cron: 0 * * * *}\n",
        a="name: a\npromql: up\nforecast: {cron: 0 */6 * * *}\ndetect: {every: 5m}\n",
        b="name: b\npromql: up\nforecast: {every: 3h, cron: 0 */6 * * *}\n",
    )
    (a,) = loading.missions
    assert (a.mission.forecast.period, a.mission.detect.period) == (timedelta(hours=6), timedelta(minutes=5))
    assert told(loading) == [("b.yaml:3", "forecast", "mission/invalid-value")]
    assert "two things" in loading.problems[0].message


def test_points_of_a_mission_stand_for_the_duration_of_its_defaults(folder: Path) -> None:
    loading = load(
        folder,
        defaults="alert: {for: 10m, labels: {severity: page}}\n",
        a="name: a\npromql: up\nalert: {points: 3 of 5}\n",
        b="name: b\npromql: up\nalert: {points: 3 of 5, for: 10m}\n",
    )
    (a,) = loading.missions
    assert (a.mission.alert.points, a.mission.alert.lasting) == ("3 of 5", timedelta(0))
    assert a.mission.alert.labels == {"severity": "page"}
    assert told(loading) == [("b.yaml:3", "alert", "mission/invalid-value")]


MANY = {
    "list": "missions:\n" + "".join(f"- name: m-{i}\n  promql: up\n  step: 1m\n" for i in range(4000)),
    "for_each": "name: m-${each}\npromql: up\nfor_each: [" + ", ".join(str(i) for i in range(4000)) + "]\n",
}


@pytest.mark.parametrize("text", MANY.values(), ids=MANY)
def test_the_time_to_load_grows_with_the_missions_and_not_with_their_square(folder: Path, text: str) -> None:
    Path("many.yaml").write_text(text)
    before = time.process_time()
    assert len(load_missions(["many.yaml"]).missions) == 4000
    assert time.process_time() - before < 2


def test_a_small_file_cannot_make_missions_without_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading_module, "MAX_MISSIONS", 25)
    values = "&v [" + ", ".join(str(i) for i in range(10)) + "]"
    templates = "".join(f"- {{name: 'm{k}-${{each}}', promql: up, for_each: *v}}\n" for k in range(40))
    loading = load(folder, bomb=f"defaults: {{for_each: {values}}}\nmissions:\n{templates}")
    assert len(loading.missions) == 25
    assert told(loading) == [("bomb.yaml:5", "", "file/too-many")]


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["1e5", "089", ".5", "null", "true", "no", "<<", "${each}", "a: b", "# x", " x ", "2026-01-01", "~", "1_000"]
)
_PLAIN = st.none() | st.booleans() | st.integers(-(10**17), 10**17) | st.floats(allow_nan=False, allow_infinity=False)
_NAMES = st.sampled_from(["1e5", "089", "0", "1-2", "null", "a"])
_FIELDS = st.fixed_dictionaries(
    {"name": _NAMES, "promql": _TEXT.filter(bool)},
    optional={
        "description": _TEXT,
        "labels": st.dictionaries(st.sampled_from(["zone", "team"]), _TEXT),
        "season": st.sampled_from(["none", "auto", ["1d", "1w"]]),
        "forecast": st.fixed_dictionaries(
            {},
            optional={
                "model": st.dictionaries(st.sampled_from(["lags", "<<", "1e5"]), _PLAIN | _TEXT | st.lists(_TEXT)).map(
                    lambda params: {"type": "m", **params}
                ),
                "cron": st.just("0 0 * * *"),
                "exclude": st.just([{"start": "2026-03-01T10:00:00", "end": "2026-03-02T10:00:00+01:00"}]),
            },
        ),
        "detect": st.fixed_dictionaries(
            {},
            optional={
                "valid_range": st.sampled_from([[0, float("inf")], [float("-inf"), 1e300], [-0.5, 1e-9]]),
                "min_relative_deviation": st.just("20%"),
            },
        ),
        "alert": st.fixed_dictionaries(
            {"for": st.just("0s")},
            optional={
                "labels": st.dictionaries(st.sampled_from(["severity", "n"]), _TEXT),
                "points": st.just("3 of 5"),
            },
        ),
        "silence": st.lists(st.fixed_dictionaries({"code": st.just("a/b"), "reason": _TEXT.filter(bool)}), max_size=2),
    },
)


@given(_FIELDS)
def test_a_mission_that_was_dumped_is_loaded_as_it_was(fields: dict[str, object]) -> None:
    mission = Mission.model_validate(fields)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "m.yaml"
        file.write_text(dump_mission(mission), encoding="utf-8", newline="")
        loading = load_missions([file])
    assert loading.problems == ()
    assert [loaded.mission for loaded in loading.missions] == [mission]
