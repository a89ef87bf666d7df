import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from anomaly_times.errors import StoreDataError, StoreUnavailableError
from anomaly_times.mission import Mission
from anomaly_times.panel import Forecast, Grid, Labels
from anomaly_times.stores import Written
from anomaly_times.stores.state import ForecastFiles

T0 = datetime(2025, 3, 1, 12, tzinfo=UTC)
STEP = timedelta(minutes=5)


def mission(name: str = "m", **fields: object) -> Mission:
    return Mission.model_validate({"name": name, "promql": "up", "step": "5m", **fields})


def forecast(cutoff: datetime, value: float, hosts: str = "ab", h: int = 4) -> Forecast:
    labels = tuple(Labels.of({"__name__": "up", "host": host}) for host in hosts)
    yhat = value + np.arange(h, dtype=float) + np.zeros((len(hosts), 1))
    return Forecast(labels, Grid(cutoff, STEP, 1).following(h), cutoff, yhat, yhat - 1, yhat + 1)


def rows(answer: Forecast) -> dict[str, list[float]]:
    return {label.get("host"): row.tolist() for label, row in zip(answer.labels, answer.yhat, strict=True)}


def test_what_is_written_is_read_back_with_the_written_labels(tmp_path: Path) -> None:
    files = ForecastFiles(tmp_path / "state")
    made = forecast(T0, 10.0)

    assert files.write(mission(), made) == Written(samples=24, series=6)

    back = files.read([mission()], made.grid)["m"]
    assert back.labels == mission().written_labels(made.labels)
    assert back.cutoff is None
    np.testing.assert_array_equal(back.yhat, made.yhat)
    np.testing.assert_array_equal(back.lower, made.lower)
    np.testing.assert_array_equal(back.upper, made.upper)
    assert [path.name for path in (tmp_path / "state" / "m").glob("*.parquet")] == ["2025-03-01T120000.000Z.parquet"]


def test_the_newest_cutoff_that_covers_a_time_wins_series_by_series(tmp_path: Path) -> None:
    files = ForecastFiles(tmp_path)
    # Written out of order: what counts is the cutoff, not the clock.
    files.write(mission(), forecast(T0 + 2 * STEP, 20.0, hosts="a"))
    files.write(mission(), forecast(T0, 10.0, hosts="ab"))

    nan = float("nan")
    got = rows(files.read([mission()], Grid(T0, STEP, 8))["m"])

    np.testing.assert_equal(got, {"a": [nan, 10, 11, 20, 21, 22, 23, nan], "b": [nan, 10, 11, 12, 13, nan, nan, nan]})


def test_where_the_newest_has_a_hole_the_one_before_stands_in(tmp_path: Path) -> None:
    files = ForecastFiles(tmp_path)
    files.write(mission(), forecast(T0, 10.0, hosts="a"))
    newer = forecast(T0 + STEP, 20.0, hosts="a")
    newer.yhat[0, 1] = np.nan
    files.write(mission(), newer)

    got = rows(files.read([mission()], Grid(T0 + 2 * STEP, STEP, 3))["m"])

    assert got == {"a": [20.0, 12.0, 22.0]}


def test_cutoffs_before_since_do_not_count(tmp_path: Path) -> None:
    files = ForecastFiles(tmp_path)
    for name in ("m", "other"):
        files.write(mission(name), forecast(T0, 10.0, hosts="a"))
        files.write(mission(name), forecast(T0 + 2 * STEP, 20.0, hosts="a", h=1))
    grid = Grid(T0 + STEP, STEP, 4)

    got = files.read([mission("m"), mission("other")], grid, since={"m": T0 + 2 * STEP})
    nan = float("nan")
    np.testing.assert_equal(rows(got["m"]), {"a": [nan, nan, 20.0, nan]})
    assert rows(got["other"]) == {"a": [10.0, 11.0, 20.0, 13.0]}
    assert files.read([mission("m")], grid, since={"m": T0 + 3 * STEP}) == {}


def test_a_cutoff_that_is_complete_is_never_written_again(tmp_path: Path) -> None:
    files = ForecastFiles(tmp_path)
    files.write(mission(), forecast(T0, 10.0))
    (path,) = (tmp_path / "m").glob("*.parquet")
    before = path.stat().st_mtime_ns, path.read_bytes()

    assert files.write(mission(), forecast(T0, 99.0)) == Written(skipped=6)

    assert (path.stat().st_mtime_ns, path.read_bytes()) == before


def test_a_retry_fills_only_the_series_that_lack_the_cutoff(tmp_path: Path) -> None:
    files = ForecastFiles(tmp_path)
    files.write(mission(), forecast(T0, 10.0, hosts="b"))

    assert files.write(mission(), forecast(T0, 99.0, hosts="abc")) == Written(samples=24, series=6, skipped=3)

    got = rows(files.read([mission()], Grid(T0 + STEP, STEP, 1))["m"])
    assert got == {"a": [99.0], "b": [10.0], "c": [99.0]}


def test_a_longer_forecast_of_the_same_cutoff_adds_only_what_lies_beyond(tmp_path: Path) -> None:
    files, longer = ForecastFiles(tmp_path), forecast(T0, 100.0, h=6)
    files.write(mission(), forecast(T0, 1.0, h=4))
    added = files.write(mission(), longer)
    assert (added.samples, added.skipped) == (3 * 2 * 2, 0)
    found = files.read([mission()], longer.grid)["m"]
    assert rows(found) == {host: [1.0, 2.0, 3.0, 4.0, 104.0, 105.0] for host in "ab"}


def test_missions_are_kept_apart_and_those_without_anything_are_absent(tmp_path: Path) -> None:
    files = ForecastFiles(tmp_path)
    assert files.read([mission()], Grid(T0, STEP, 3)) == {}
    files.write(mission("one"), forecast(T0, 1.0))
    files.write(mission("two"), forecast(T0, 2.0))

    got = files.read([mission("one"), mission("two"), mission("three")], Grid(T0 + STEP, STEP, 1))

    assert {name: rows(answer) for name, answer in got.items()} == {
        "one": {"a": [1.0], "b": [1.0]},
        "two": {"a": [2.0], "b": [2.0]},
    }
    assert files.read([mission("one")], Grid(T0 + timedelta(days=1), STEP, 3)) == {}
    assert files.read([mission("one")], Grid(T0 - timedelta(days=1), STEP, 3)) == {}


def test_an_empty_forecast_leaves_no_file(tmp_path: Path) -> None:
    nothing = forecast(T0, float("nan"))
    assert ForecastFiles(tmp_path).write(mission(), nothing) == Written()
    assert list(tmp_path.iterdir()) == []


def test_label_values_with_quotes_commas_and_newlines_come_back(tmp_path: Path) -> None:
    made = forecast(T0, 1.0, hosts="a")
    odd = Labels.of({"a": 'x",b="y', "b": "two\nlines", "c": "back\\slash", "d": "{,}=", "é": "ü"})
    files = ForecastFiles(tmp_path)
    files.write(mission(), Forecast((odd,), made.grid, T0, made.yhat, made.lower, made.upper))

    (labels,) = files.read([mission()], made.grid)["m"].labels

    assert labels == Labels.of({**dict(odd), "mission": "m"})


def test_prune_removes_what_lies_past_its_horizon_and_catch_up(tmp_path: Path) -> None:
    files = ForecastFiles(tmp_path)
    slow = mission("slow", detect={"catch_up": "6h"})
    for which in (mission(), slow):
        files.write(which, forecast(T0, 1.0))
        files.write(which, forecast(T0 + timedelta(hours=2), 1.0))

    def kept() -> list[str]:
        return sorted(f"{path.parent.name} {path.name[11:15]}" for path in tmp_path.glob("*/*.parquet"))

    # The first forecast ends at 12:20 and is kept for an hour of catching up.
    files.prune(T0 + timedelta(hours=1, minutes=20))
    assert kept() == ["m 1200", "m 1400", "slow 1200", "slow 1400"]
    files.prune(T0 + timedelta(hours=1, minutes=21))
    assert kept() == ["m 1400", "slow 1200", "slow 1400"]
    files.prune(T0 + timedelta(days=9))
    assert kept() == []
    ForecastFiles(tmp_path / "not there").prune(T0)


def test_a_retry_after_prune_is_seen_at_once(tmp_path: Path) -> None:
    files = ForecastFiles(tmp_path)
    files.write(mission(), forecast(T0, 1.0, h=1))
    assert files.read([mission()], Grid(T0 + 3 * STEP, STEP, 1)) == {}
    files.prune(T0 + timedelta(days=1))
    files.write(mission(), forecast(T0, 5.0, h=4))
    assert rows(files.read([mission()], Grid(T0 + 3 * STEP, STEP, 1))["m"]) == {"a": [7.0], "b": [7.0]}


def test_a_truncated_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    files = ForecastFiles(tmp_path)
    files.write(mission(), forecast(T0, 1.0))
    (path,) = (tmp_path / "m").glob("*.parquet")
    path.write_bytes(path.read_bytes()[:-300])

    with pytest.raises(StoreDataError, match=r"2025-03-01T120000\.000Z\.parquet cannot be read as Parquet"):
        files.read([mission()], Grid(T0 + STEP, STEP, 1))
    with pytest.raises(StoreDataError, match="cannot be read as Parquet"):
        files.write(mission(), forecast(T0, 1.0))
    files.prune(T0 + timedelta(days=1))
    assert path.exists()


def test_a_foreign_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    files = ForecastFiles(tmp_path)
    files.write(mission(), forecast(T0, 1.0))
    foreign = tmp_path / "m" / "mine.parquet"
    pl.DataFrame({"x": [1]}).write_parquet(foreign)
    with pytest.raises(StoreDataError, match=r"mine\.parquet is none of our files"):
        files.read([mission()], Grid(T0 + STEP, STEP, 1))

    foreign.rename(tmp_path / "m" / "2025-03-01T110000.000Z.parquet")
    with pytest.raises(StoreDataError, match=r"T110000\.000Z\.parquet is none of our files: it has other columns"):
        files.read([mission()], Grid(T0 + STEP, STEP, 1))


def test_what_a_killed_writer_left_behind_is_ignored_and_cleaned_up(tmp_path: Path) -> None:
    files = ForecastFiles(tmp_path)
    files.write(mission(), forecast(T0, 1.0))
    left_over = tmp_path / "m" / ".2025-03-01T130000.000Z.parquet.tmp"
    left_over.write_bytes(b"PAR1 half")

    assert rows(files.read([mission()], Grid(T0 + STEP, STEP, 1))["m"]) == {"a": [1.0], "b": [1.0]}
    files.write(mission(), forecast(T0 + timedelta(hours=1), 1.0))
    assert not left_over.exists()


def test_a_folder_that_cannot_be_written_is_a_short_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailableError, match="file/m cannot be written: Not a directory"):
        ForecastFiles(tmp_path / "file").write(mission(), forecast(T0, 1.0))


def test_workers_that_share_the_folder_lose_nothing(tmp_path: Path) -> None:
    # Each writes series of its own for one cutoff: every write but the first must merge with those before.
    together = threading.Barrier(8)

    def work(host: str) -> Written:
        together.wait(30)
        return ForecastFiles(tmp_path).write(mission(), forecast(T0, 1.0, hosts=host))

    with ThreadPoolExecutor(8) as pool:
        written = list(pool.map(work, "abcdefgh"))

    assert written == [Written(samples=12, series=3)] * 8
    got = ForecastFiles(tmp_path).read([mission()], Grid(T0 + STEP, STEP, 1))["m"]
    assert rows(got) == {host: [1.0] for host in "abcdefgh"}
