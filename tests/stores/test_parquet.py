import gzip
import math
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomaly_times.errors import NoSeriesError, QueryError, StoreDataError, StoreError
from anomaly_times.mission import Mission
from anomaly_times.panel import Forecast, Grid, Labels, Panel, Scores
from anomaly_times.settings import Source
from anomaly_times.stores import Store, Written, open_store
from anomaly_times.stores.parquet import FolderStore

STEP = timedelta(minutes=5)
NOON = datetime(2025, 3, 1, 12, tzinfo=UTC)
GRID = Grid(NOON, STEP, 3)
NAN = math.nan


def store(path: Path) -> FolderStore:
    return FolderStore(Source(folder=path))


def file(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def shown(panel: Panel) -> dict[str, list[float | None]]:
    """By series; `None` is a gap."""
    return {
        labels.get("__name__") + str(labels.without(["__name__"])): [None if math.isnan(y) else y for y in row.tolist()]
        for labels, row in zip(panel.labels, panel.y, strict=True)
    }


def everything(folder: Path, grid: Grid = GRID) -> dict[str, list[float | None]]:
    return shown(store(folder).read('{__name__=~".+"}', grid))


LONG = """ds,metric,host,y
2025-03-01T12:00:00Z,cpu,a,1
2025-03-01T12:05:00Z,cpu,a,2
2025-03-01T12:00:00Z,cpu,b,3
2025-03-01T12:10:00Z,up,,4
"""


# What a file may look like


def test_a_long_file_has_a_label_a_column(tmp_path: Path) -> None:
    file(tmp_path, "m.csv", LONG)
    assert everything(tmp_path) == {
        'cpu{host="a"}': [1, 2, None],
        'cpu{host="b"}': [3, None, None],
        "up{}": [None, None, 4],
    }


def test_a_unique_id_may_be_a_label_set_or_a_plain_id(tmp_path: Path) -> None:
    ids = ['cpu{host="a,\\"b\\""}', '{host="c"}', "H1"]
    frame = pl.DataFrame({"unique_id": ids, "ds": [NOON] * 3, "y": [1, 2, 3]})
    frame.write_parquet(tmp_path / "load-avg.parquet")
    got = store(tmp_path).read('{__name__=~".+"}', GRID.last(3)[:1])
    assert dict(zip(got.labels, got.y[:, 0].tolist(), strict=True)) == {
        Labels.of({"__name__": "cpu", "host": 'a,"b"'}): 1,
        Labels.of({"__name__": "load_avg", "host": "c"}): 2,
        Labels.of({"__name__": "load_avg", "series": "H1"}): 3,
    }


def test_a_wide_file_has_a_series_a_column(tmp_path: Path) -> None:
    file(tmp_path, "q.csv", 'time,"depth{q=""a""}","{q=""b""}",c\n2025-03-01 12:00,1,2,3\n2025-03-01 12:05,,5,NA\n')
    assert everything(tmp_path) == {
        'depth{q="a"}': [1, None, None],
        'q{q="b"}': [2, 5, None],
        'q{series="c"}': [3, None, None],
    }


def test_a_file_with_times_and_values_only_is_one_series_named_after_it(tmp_path: Path) -> None:
    file(tmp_path, "nested/deep/2xx rate-5m.csv", "timestamp,value\n2025-03-01 12:00:00,7.5\n")
    assert everything(tmp_path, GRID[:1]) == {"_2xx_rate_5m{}": [7.5]}


def test_labels_of_a_csv_stay_as_they_are_written(tmp_path: Path) -> None:
    file(tmp_path, "m.csv", "ds,shard,Cloud Zone,y\n2025-03-01,007,1.0,5\n")
    assert everything(tmp_path, Grid(NOON - timedelta(hours=12), STEP, 1)) == {'m{Cloud_Zone="1.0",shard="007"}': [5]}


def test_numbers_and_truth_values_in_parquet_can_be_labels(tmp_path: Path) -> None:
    frame = pl.DataFrame({"ds": [NOON, NOON], "code": [200, 500], "ok": [True, False], "y": [1.0, 2.0]})
    frame.write_parquet(tmp_path / "m.parquet")
    assert everything(tmp_path, GRID[:1]) == {'m{code="200",ok="true"}': [1], 'm{code="500",ok="false"}': [2]}


def test_a_zipped_csv_and_a_single_file_are_read_too(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "cpu.csv.gz", "wt") as out:
        out.write("ds,y\n2025-03-01T12:00:00Z,1\n")
    file(tmp_path, "other.csv", "ds,y\n2025-03-01T12:00:00Z,2\n")
    assert everything(tmp_path, GRID[:1]) == {"cpu{}": [1], "other{}": [2]}
    assert everything(tmp_path / "cpu.csv.gz", GRID[:1]) == {"cpu{}": [1]}


def test_hidden_files_and_our_own_results_are_no_metrics(tmp_path: Path) -> None:
    text = "ds,y\n2025-03-01T12:00:00Z,1\n"
    for name in ("a.csv", ".b.csv", ".c/c.csv", "anomaly-times/d.csv", "x/anomaly-times/e.csv", "notes.txt"):
        file(tmp_path, name, text)
    assert everything(tmp_path, GRID[:1]) == {"a{}": [1]}


def test_one_series_may_be_spread_over_files(tmp_path: Path) -> None:
    head, first, second, third, fourth = LONG.splitlines(keepends=True)
    file(tmp_path, "later.csv", head + second + third)
    file(tmp_path, "earlier.csv", head + first + second + fourth)
    assert everything(tmp_path) == {
        'cpu{host="a"}': [1, 2, None],
        'cpu{host="b"}': [3, None, None],
        "up{}": [None, None, 4],
    }


@pytest.mark.parametrize(
    "times",
    [
        ["2025-03-01T12:00:00Z", "2025-03-01T12:05:00.000Z"],
        ["2025-03-01 12:00:00", "2025-03-01 12:05:00"],
        ["2025-03-01 12:00", "2025-03-01T12:05"],
        ["2025-03-01T13:00:00+01:00", "2025-03-01 06:35:00-0530"],
        ["2025-03-01 12:00:00 UTC", " 2025-03-01 12:05:00.000000 "],
        [1740830400, 1740830700],
        ["1740830400", "1740830700.0"],
        [1740830400_000, 1740830700_000],
        [1740830400_000_000, 1740830700_000_000],
        [1740830400_000_000_000, 1740830700_000_000_000],
        [1740830400.0, 1740830700.25],
        [NOON, NOON + STEP],
        [NOON.replace(tzinfo=None), NOON.replace(tzinfo=None) + STEP],
    ],
)
def test_times_of_every_usual_form_are_understood(tmp_path: Path, times: list[object]) -> None:
    pl.DataFrame({"Time": times, "y": [1.0, 2.0]}).write_parquet(tmp_path / "m.parquet")
    grid = GRID[:2] if times[1] != 1740830700.25 else Grid(NOON, timedelta(minutes=10), 2)
    assert everything(tmp_path, grid) == {"m{}": [1, 2]}


def test_a_zone_in_parquet_is_honoured_and_a_date_is_its_midnight(tmp_path: Path) -> None:
    local = pl.Series("ds", [datetime(2025, 3, 1, 13)]).dt.replace_time_zone("Europe/Berlin")
    pl.DataFrame([local, pl.Series("y", [1])]).write_parquet(tmp_path / "berlin.parquet")
    pl.DataFrame({"date": [date(2025, 3, 1)], "y": [2]}).write_parquet(tmp_path / "day.parquet")
    assert shown(store(tmp_path).read("berlin", GRID[:1])) == {"berlin{}": [1]}
    assert shown(store(tmp_path).read("day", Grid(NOON - timedelta(hours=12), STEP, 1))) == {"day{}": [2]}


def test_gaps_and_infinities_are_gaps(tmp_path: Path) -> None:
    cells = ["1", "", "NaN", "null", "+Inf", "-inf", "1e3"]
    rows = "".join(f"{1740830400 + 300 * i},{cell}\n" for i, cell in enumerate(cells))
    file(tmp_path, "m.csv", "ds,y\n" + rows)
    assert everything(tmp_path, Grid(NOON, STEP, 7)) == {"m{}": [1, *[None] * 5, 1000]}


# Bad files


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ds,y\n2025-03-01,1\n2025-13-01,2\n", "m.csv:3: '2025-13-01' in column 'ds' is no time"),
        ("ds,y\n2025-03-01,1\n,2\n", "m.csv:3: an empty cell in column 'ds' is no time"),
        ("ds,y\n1,1\n2,2\n", r"m.csv:2: '1' in column 'ds' is no time \(2 such rows\)"),
        ("ds,y\n20250301,1\n", "m.csv:2: '20250301' in column 'ds' is no time"),
        ("ds,y\n2025-03-01,one\n", "m.csv:2: 'one' in column 'y' is no number"),
        ("ds,a,b\n2025-03-01,1,2\n2025-03-02,1,x\n", "m.csv:3: 'x' in column 'b' is no number"),
        ("a,y\n1,1\n", r"m.csv has no time column \(columns: 'a', 'y'\)"),
        ("ds\n2025-03-01\n", "m.csv has times but no values"),
        ("ds,y,y\n2025-03-01,1,2\n", "m.csv: the column 'y' is there twice"),
        ('ds,"a{b=""1""}","a{ b=""1"" }"\n2025-03-01,1,2\n', "m.csv: the columns .* are the same series"),
        ('ds,"a{b=1}"\n2025-03-01,1\n', "m.csv: 'a{b=1}' is no label set"),
        ("ds,a-b,a b,y\n2025-03-01,1,2,3\n", "m.csv: the column 'a_b' is there twice"),
        ("ds,y\n2025-03-01,1,5\n", "m.csv cannot be read as CSV"),
        ("", "m.csv is empty"),
        ("ds,h,y\n2025-03-01,a,1\n2025-03-01,a,2\n", "m.csv:3: .*has the values 1 .*m.csv:2.* and 2 at 2025-03-01T00"),
    ],
)
def test_a_file_that_makes_no_sense_is_an_error_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    file(tmp_path, "m.csv", text)
    with pytest.raises(StoreDataError, match=message) as caught:
        everything(tmp_path)
    assert caught.value.hint


def test_a_parquet_file_that_makes_no_sense_is_an_error_with_its_row(tmp_path: Path) -> None:
    pl.DataFrame({"ds": [NOON, None], "y": [1, 2]}).write_parquet(tmp_path / "m.parquet")
    with pytest.raises(StoreDataError, match=r"m\.parquet, row 2: an empty cell in column 'ds' is no time"):
        everything(tmp_path)
    pl.DataFrame({"ds": [NOON], "y": [[1, 2]]}).write_parquet(tmp_path / "m.parquet")
    with pytest.raises(StoreDataError, match=r"m\.parquet"):
        everything(tmp_path)
    path = file(tmp_path, "m.parquet", "PAR1 but not really")
    with pytest.raises(StoreDataError, match=r"m\.parquet cannot be read as Parquet"):
        everything(path)


def test_measurements_in_a_long_file_are_not_taken_for_labels(tmp_path: Path) -> None:
    rows = "".join(f"{1740830400 + 300 * i},{i}.5,{i}\n" for i in range(30))
    file(tmp_path, "m.csv", "ds,cpu,value\n" + rows)
    with pytest.raises(StoreDataError, match="the column 'cpu' holds numbers"):
        everything(tmp_path)


def test_a_clock_that_was_set_back_is_repaired_by_the_last_value(tmp_path: Path) -> None:
    minutes = [*range(40), 39, *range(40, 60)]
    rows = "".join(f"{1740830400 + 60 * minute},{i}\n" for i, minute in enumerate(minutes))
    file(tmp_path, "m.csv", "ds,y\n" + rows)
    got = everything(tmp_path, Grid(NOON + timedelta(minutes=38), timedelta(minutes=1), 3))
    assert got == {"m{}": [38, 40, 41]}


def test_two_files_that_contradict_each_other_are_an_error_that_names_both(tmp_path: Path) -> None:
    file(tmp_path, "eu/cpu.csv", "ds,y\n2025-03-01,1\n")
    file(tmp_path, "us/cpu.csv", "ds,y\n2025-03-01,2\n")
    with pytest.raises(StoreDataError, match=r"us/cpu\.csv: .*eu/cpu\.csv"):
        everything(tmp_path)


def test_a_folder_without_metrics_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="has no metrics: no file ends in"):
        everything(tmp_path)
    with pytest.raises(StoreError, match="there is no folder or file"):
        everything(tmp_path / "gone")
    with pytest.raises(StoreError, match="there is no folder or file"):
        store(tmp_path / "gone").write_scores([(mission(), scores(NOON, [1.0]))])
    with pytest.raises(StoreError, match="neither Parquet nor CSV"):
        everything(file(tmp_path, "notes.txt", ""))


# Queries

HTTP = """ds,__name__,job,env,y
2025-03-01T12:00:00Z,http_requests,api,dev,1
2025-03-01T12:00:00Z,http_requests,api,prod,2
2025-03-01T12:00:00Z,http_requests,web,prod,3
2025-03-01T12:00:00Z,http_requests,,prod,4
2025-03-01T12:00:00Z,http_errors,api,prod,5
"""


@pytest.mark.parametrize(
    ("promql", "values"),
    [
        ("http_requests", [1, 2, 3, 4]),
        ("(http_requests)", [1, 2, 3, 4]),
        ('http_requests{job="api"}', [1, 2]),
        ('http_requests{job!="api"}', [3, 4]),
        ('http_requests{job=""}', [4]),
        ('http_requests{job=~"api|web",env!="dev"}', [2, 3]),
        ('http_requests{job=~"ap"}', []),
        ('http_requests{job=~"a.*"}', [1, 2]),
        ('http_requests{job=~"|web"}', [3, 4]),
        ('http_requests{job!~"a.i"}', [3, 4]),
        ('http_requests{nothing=""}', [1, 2, 3, 4]),
        ('http_requests{job=~".+"}', [1, 2, 3]),
        ('{__name__=~"http_.*", job="api"}', [1, 2, 5]),
        ('{__name__="http_errors"}', [5]),
        ('{env="prod", __name__!="http_errors"}', [2, 3, 4]),
        ('http_requests{job="web" or env="dev"}', [1, 3]),
        ('http_requests{job=~"(?i)API"}', [1, 2]),
    ],
)
def test_selectors_match_as_in_prometheus(tmp_path: Path, promql: str, values: list[float]) -> None:
    file(tmp_path, "m.csv", HTTP)
    if values:
        assert sorted(store(tmp_path).read(promql, GRID).y[:, 0].tolist()) == values
    else:
        with pytest.raises(NoSeriesError):
            store(tmp_path).read(promql, GRID)


@pytest.mark.parametrize(
    ("promql", "message"),
    [
        ("rate(http_requests[5m])", "answers label selectors only"),
        ("sum by (job) (http_requests)", "answers label selectors only"),
        ("http_requests / http_requests", "answers label selectors only"),
        ("http_requests / 2", "answers label selectors only"),
        ("-http_requests", "answers label selectors only"),
        ("+".join(["http_requests"] * 1000), "answers label selectors only"),
        ("-" * 10_000 + "up", "answers label selectors only"),
        ("http_requests[5m]", "no series"),
        ("42", "no series"),
        ("http_requests offset 1h", "offset or @ modifier"),
        ("http_requests @ 1740830400", "offset or @ modifier"),
        ('{job=~".*"}', "at least one non-empty matcher"),
        ('http_requests{job=~"("}', "regex"),
        ('http_requests{job=~"a)|(b"}', "regular expression"),
        ("http_requests{job=", r"'{' is not closed\n  http_requests{job=\n               \^"),
        ("", "empty"),
        ("(" * 9_000 + "up" + ")" * 9_000, "nests more than"),
        ('up{a="' + "x" * 30_000 + '"}', "30,008 characters"),
    ],
)
def test_what_is_no_selector_is_a_query_error(tmp_path: Path, promql: str, message: str) -> None:
    file(tmp_path, "m.csv", HTTP)
    with pytest.raises(QueryError, match=message) as caught:
        store(tmp_path).read(promql, GRID)
    assert len(caught.value.message) < 500


def test_a_selector_full_of_brackets_and_dashes_in_strings_is_no_deep_nesting(tmp_path: Path) -> None:
    file(tmp_path, "m.csv", HTTP)
    hosts = "|".join(["(web-1-2-3)", "api"] * 300)
    assert store(tmp_path).read(f'http_requests{{job=~"{hosts}"}}', GRID).n_series == 2


def test_a_query_that_matches_nothing_says_what_there_is(tmp_path: Path) -> None:
    file(tmp_path, "m.csv", HTTP)
    with pytest.raises(NoSeriesError) as caught:
        store(tmp_path).read("http_request", GRID)
    assert caught.value.hint == "did you mean http_requests or http_errors? there is: http_errors, http_requests"
    with pytest.raises(NoSeriesError) as caught:
        store(tmp_path).read('http_requests{job="db"}', GRID)
    assert caught.value.hint == 'there is e.g. {__name__="http_requests",env="dev",job="api"}'
    with pytest.raises(NoSeriesError, match=r"no sample in .* from 2025-03-02T12:00:00Z to") as caught:
        store(tmp_path).read("http_requests", Grid(NOON + timedelta(days=1), STEP, 2))
    assert "from 2025-03-01T12:00:00Z to 2025-03-01T12:00:00Z" in caught.value.hint


def test_more_series_than_allowed_are_an_error(tmp_path: Path) -> None:
    file(tmp_path, "m.csv", HTTP)
    assert store(tmp_path).read("http_requests", GRID, max_series=4).n_series == 4
    with pytest.raises(QueryError, match=r"matches 4 series .*, and 3 are allowed"):
        store(tmp_path).read("http_requests", GRID, max_series=3)


def test_a_series_without_a_point_on_the_grid_is_left_out(tmp_path: Path) -> None:
    file(tmp_path, "m.csv", LONG)
    assert shown(store(tmp_path).read("cpu", Grid(NOON + STEP, STEP, 1))) == {'cpu{host="a"}': [2]}


def test_a_grid_time_has_the_last_sample_of_the_step_that_ends_there(tmp_path: Path) -> None:
    times = ["11:55:00", "11:55:01", "11:59:59", "12:00:00.001", "12:05:00", "12:10:01"]
    rows = "".join(f"2025-03-01T{time},{i}\n" for i, time in enumerate(times))
    file(tmp_path, "m.csv", "ds,y\n" + rows)
    assert everything(tmp_path, GRID) == {"m{}": [2, 4, None]}
    assert everything(tmp_path, Grid(NOON - STEP, STEP, 1)) == {"m{}": [0]}


def test_samples_in_any_order_are_read_in_order(tmp_path: Path) -> None:
    file(tmp_path, "m.csv", "ds,y\n2025-03-01T12:04,4\n2025-03-01T12:01,1\n2025-03-01T12:03,3\n")
    assert everything(tmp_path, Grid(NOON + STEP, STEP, 1)) == {"m{}": [4]}


def test_a_file_that_changes_or_appears_is_read_again(tmp_path: Path) -> None:
    here = store(tmp_path)
    path = file(tmp_path, "a.csv", "ds,y\n2025-03-01T12:00,1\n")
    assert shown(here.read("a", GRID[:1])) == {"a{}": [1]}
    file(tmp_path, "a.csv", "ds,y\n2025-03-01T12:00,22\n")
    file(tmp_path, "b.csv", "ds,y\n2025-03-01T12:00,3\n")
    assert shown(here.read('{__name__=~"a|b"}', GRID[:1])) == {"a{}": [22], "b{}": [3]}
    path.unlink()
    assert shown(here.read('{__name__=~"a|b"}', GRID[:1])) == {"b{}": [3]}


def test_an_unchanged_file_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from anomaly_times.stores import parquet

    calls = []
    real = parquet.read_metric_file

    def counted(path: Path) -> object:
        calls.append(path.name)
        return real(path)

    monkeypatch.setattr(parquet, "read_metric_file", counted)
    file(tmp_path, "a.csv", "ds,y\n2025-03-01T12:00,1\n")
    here = store(tmp_path)
    for _ in range(3):
        here.read("a", GRID)
    file(tmp_path, "b.csv", "ds,y\n2025-03-01T12:00,1\n")
    here.read("a", GRID)
    assert calls == ["a.csv", "b.csv"]


def test_the_real_cloudwatch_metrics_are_read_as_they_are(shared_data: Path) -> None:
    here = store(shared_data / "nab" / "realAWSCloudwatch")
    start, end = datetime(2013, 1, 1, tzinfo=UTC), datetime(2014, 12, 31, tzinfo=UTC)
    got = here.read('{__name__=~".+"}', Grid.covering(start, end, STEP))

    assert got.n_series == 17
    names = [labels.get("__name__") for labels in got.labels]
    assert "iio_us_east_1_i_a2eb1cd9_NetworkIn" in names
    one = got.y[names.index("ec2_cpu_utilization_5f5533")]
    assert np.isfinite(one).sum() == 4032
    # The first sample, of 14:27, stands for the step that ends at 14:30.
    assert one[got.grid.index(datetime(2014, 2, 14, 14, 30, tzinfo=UTC))] == 51.846000000000004


# Results


def mission(name: str = "m") -> Mission:
    return Mission.model_validate({"name": name, "promql": "up", "step": "5m"})


LABELS = tuple(Labels.of({"__name__": "up", "host": host}) for host in "ab")


def scores(start: datetime, *rows: list[float]) -> Scores:
    score = np.array(rows, dtype=float)
    return Scores(
        LABELS[: len(rows)], Grid(start, STEP, score.shape[1]), score + 10, score + 1, score - 1, score + 2, score
    )


def test_scores_are_read_back_with_the_written_labels(tmp_path: Path) -> None:
    here = store(tmp_path)
    made = scores(NOON - STEP, [0.5, NAN, 2.0], [NAN, 0.0, 1.0])

    assert here.write_scores([(mission(), made), (mission("n"), scores(NOON, [7.0]))]) == Written(5, 3)

    got = here.read_scores([mission(), mission("n"), mission("none")], Grid(NOON - 2 * STEP, STEP, 4))
    assert sorted(got) == ["m", "n"]
    assert got["m"].labels == mission().written_labels(LABELS)
    np.testing.assert_equal(got["m"].y, [[NAN, 0.5, NAN, 2.0], [NAN, NAN, 0.0, 1.0]])
    assert here.read_scores([mission()], Grid(NOON + timedelta(days=1), STEP, 4)) == {}


def test_scores_written_again_are_not_there_twice(tmp_path: Path) -> None:
    here = store(tmp_path)
    here.write_scores([(mission(), scores(NOON, [1.0, 2.0], [3.0, 4.0]))])
    assert here.write_scores([(mission(), scores(NOON, [1.0, 2.0], [3.0, 4.0]))]) == Written(skipped=2)
    # A rerun of a pass that died: what is there stays, what is missing comes.
    assert here.write_scores([(mission(), scores(NOON, [9.0, 9.0, 5.0], [9.0, 9.0, NAN]))]) == Written(1, 1, 1)

    stored = pl.read_parquet(tmp_path / "anomaly-times" / "scores" / "m" / "*.parquet")
    assert stored.columns[:7] == ["unique_id", "ds", "y", "yhat", "yhat_lower", "yhat_upper", "score"]
    assert stored.columns[7:] == ["reason", "sustained", "roughness", "drift", "flat", "incident"]
    assert stored.select("unique_id", "ds").is_duplicated().any() is False
    assert stored.sort("unique_id", "ds")["score"].to_list() == [1, 2, 5, 3, 4]
    assert stored.sort("unique_id", "ds").row(0)[2:7] == (11, 2, 0, 3, 1)


def test_scores_of_many_passes_and_hours_are_one_series(tmp_path: Path) -> None:
    here = store(tmp_path)
    begin = NOON - timedelta(minutes=35)
    for k in range(40):
        here.write_scores([(mission(), scores(begin + k * STEP, [float(k)]))])
    got = here.read_scores([mission()], Grid(begin, STEP, 40))["m"]
    assert got.y.tolist() == [[float(k) for k in range(40)]]
    names = sorted(path.name[11:15] for path in (tmp_path / "anomaly-times" / "scores" / "m").glob("*.parquet"))
    assert names == ["1100", "1200", "1300", "1400"]


def test_a_foreign_file_among_the_scores_is_named(tmp_path: Path) -> None:
    here = store(tmp_path)
    here.write_scores([(mission(), scores(NOON, [1.0])), (mission(), scores(NOON + timedelta(hours=1), [1.0]))])
    path = tmp_path / "anomaly-times" / "scores" / "m" / "2025-03-01T130000.000Z.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StoreDataError, match=r"T130000\.000Z\.parquet cannot be read as Parquet"):
        here.read_scores([mission()], Grid(NOON, STEP, 30))
    pl.DataFrame({"x": [1]}).write_parquet(path)
    with pytest.raises(StoreDataError, match=r"T130000\.000Z\.parquet is none of our files"):
        here.read_scores([mission()], Grid(NOON, STEP, 30))


@pytest.mark.parametrize("where", [lambda folder: folder, lambda folder: folder / "up.csv"])
def test_forecasts_lie_beside_the_metrics_and_are_kept(tmp_path: Path, where: Callable[[Path], Path]) -> None:
    file(tmp_path, "up.csv", "ds,y\n2025-03-01T12:00,1\n")
    here: Store = open_store(Source(folder=where(tmp_path)), state=tmp_path / "unused")
    for k in range(3):
        cutoff = NOON + k * timedelta(days=30)
        yhat = np.full((2, 2), float(k))
        made = Forecast(LABELS, Grid(cutoff, STEP, 1).following(2), cutoff, yhat, yhat - 1, yhat + 1)
        assert here.write_forecasts([(mission(), made)]) == Written(12, 6)

    assert here.read_forecasts([mission()], Grid(NOON + STEP, STEP, 2))["m"].yhat.tolist() == [[0, 0], [0, 0]]
    assert len(list((tmp_path / "anomaly-times" / "forecasts" / "m").glob("*.parquet"))) == 3
    assert not (tmp_path / "unused").exists()
    assert shown(here.read("up", GRID[:1])) == {"up{}": [1]}


# Label sets as text

NAME = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,8}", fullmatch=True) | st.sampled_from(["é", "a.b", "x-y"])
VALUE = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(['"', "\\", "\n", ",", "=", "{", "}"]))


@given(st.dictionaries(NAME, VALUE, max_size=4))
def test_a_label_set_survives_its_text(labels: dict[str, str]) -> None:
    assert Labels.parse(str(Labels.of(labels))) == Labels.of(labels)


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("{}", {}),
        ("up{}", {"__name__": "up"}),
        (' up{ a = "b" , c="d", } ', {"__name__": "up", "a": "b", "c": "d"}),
        ('{a=""}', {}),
    ],
)
def test_a_label_set_may_be_written_by_hand(text: str, labels: dict[str, str]) -> None:
    assert Labels.parse(text) == Labels.of(labels)


@pytest.mark.parametrize(
    "text",
    ["", "up", "{", '{a="b"', '{a="b}', "{a=b}", '{a="b"c="d"}', '{a="b",a="c"}', '{a="\\",a="c"}', 'a b{c="d"}'],
)
def test_what_is_no_label_set_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no label set|a label twice"):
        Labels.parse(text)
