"""A page stands alone, shows what it is given, and cannot be broken by what labels hold."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anomaly_times.evidence import REASONS
from anomaly_times.outputs import Chart, Row, Table, Window, render_page
from anomaly_times.outputs.html import MAX_POINTS
from anomaly_times.panel import Grid
from tests.servers import need

HOSTILE = '</script><img src=x onerror="alert(1)">&amp;\u2028<!--'
AT = datetime(2026, 3, 1, 12, tzinfo=UTC)


def _chart(n: int = 50, *, title: str = "cpu", **more: Any) -> Chart:
    grid = Grid.ending(AT, timedelta(minutes=1), n)
    y = np.sin(np.arange(n) / 5)
    yhat = np.zeros(n)
    return Chart(title, grid, y, yhat, yhat - 0.5, yhat + 0.5, np.abs(y) / 0.5, **more)


def _data(page: str) -> list[dict[str, Any]]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])  # type: ignore[no-any-return]


def test_hostile_names_stay_text_everywhere() -> None:
    window = Window(AT, AT, HOSTILE, "found")
    page = render_page(
        HOSTILE,
        [_chart(title=HOSTILE, subtitle=HOSTILE, windows=(window,))],
        lead=HOSTILE,
        facts=[(HOSTILE, HOSTILE)],
        tables=[Table(HOSTILE, (HOSTILE, "b"), (Row((HOSTILE, HOSTILE), "found", 0, window),))],
    )
    assert "<img" not in page
    assert page.count("</script>") == 2
    assert page.count(html.escape(HOSTILE)) == 12
    assert _data(page)[0]["windows"][0]["label"] == HOSTILE


def test_nothing_runs_or_loads_but_what_the_page_brings() -> None:
    page = render_page("t", [_chart()])
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1])  # type: ignore[index]
    assert policy.startswith("default-src 'none'; ")
    for kind in ("script", "style"):
        body = re.search(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)[1]  # type: ignore[index]
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert not re.search(r'\b(src|href)="(?!#)', page)
    assert "@import" not in page


def test_values_are_rounded_and_gaps_are_null() -> None:
    grid = Grid.ending(AT, timedelta(minutes=1), 4)
    y = np.array([1.0, np.nan, 1 / 3, np.inf])
    [data] = _data(render_page("t", [Chart("a", grid, y, yhat=np.full(4, np.nan))]))
    assert data["y"] == [1, None, 0.333333, None]
    assert data["t0"] == AT.timestamp() - 180
    assert data["step"] == 60
    assert "yhat" not in data  # nothing but gaps is nothing to draw
    assert "i" not in data


def test_a_long_series_keeps_its_extremes_its_gaps_and_its_highest_scores() -> None:
    n = 100_000
    rng = np.random.default_rng(0)
    y, score = rng.normal(size=n), rng.uniform(0, 0.9, n)
    y[70_001], y[20_003] = 50.0, -50.0
    y[40_000:40_200] = np.nan
    score[55_555] = 7.0
    [data] = _data(render_page("t", [Chart("a", Grid.ending(AT, timedelta(minutes=1), n), y, score=score)]))
    assert len(data["y"]) == len(data["i"]) == len(data["score"]) <= MAX_POINTS + 1
    drawn = dict(zip(data["i"], zip(data["y"], data["score"], strict=True), strict=True))
    assert drawn[70_001][0] == 50
    assert drawn[20_003][0] == -50
    assert drawn[55_555][1] == 7
    assert any(40_000 <= i < 40_200 and value is None for i, (value, _) in drawn.items())
    assert data["i"] == sorted(data["i"])
    assert data["i"][-1] == n - 1


def test_a_series_up_to_the_limit_is_drawn_whole() -> None:
    [data] = _data(render_page("t", [_chart(MAX_POINTS)]))
    assert len(data["y"]) == MAX_POINTS


def test_arrays_of_another_length_than_the_grid_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Chart\.score is \(3,\), not 4 points"):
        Chart("a", Grid.ending(AT, timedelta(minutes=1), 4), np.zeros(4), score=np.zeros(3))


def test_a_page_without_series_and_a_table_without_rows_say_so() -> None:
    page = render_page("t", [], tables=[Table("Incidents", ("a",), (), empty="All is well.")])
    assert "There is nothing to draw." in page
    assert "All is well." in page


def test_the_key_names_only_what_the_charts_show() -> None:
    grid, nothing = Grid.ending(AT, timedelta(minutes=1), 9), np.full(4, np.nan)
    y = np.concatenate([np.ones(5), nothing])
    forecast = render_page("t", [Chart("a", grid, y, y, y, y, cutoff=AT)])
    assert "score over 1" not in forecast
    assert "marked time" not in forecast
    assert "the last time that the forecast knew" in forecast
    scored = render_page("t", [_chart(windows=(Window(AT, AT),))])
    assert "score over 1" in scored
    assert "marked time" in scored
    assert "the last time that the forecast knew" not in scored


def test_when_a_page_was_made_and_where_its_data_end_are_told_apart() -> None:
    y = np.array([1.0, 1.0, np.nan])
    chart = Chart("a", Grid.ending(AT, timedelta(minutes=1), 3), y)
    page = render_page("t", [chart], made=AT + timedelta(days=1))
    assert "Made at 2026-03-02 12:00 UTC from data up to 2026-03-01 11:59." in page
    assert "Made at 2026-03-02 12:00 UTC." in render_page("t", [], made=AT + timedelta(days=1))


def test_stretches_are_named_by_what_they_are_of() -> None:
    n = 2 * MAX_POINTS
    score, reason = np.zeros(n), np.zeros(n)
    reason[:] = REASONS.index("drift")
    score[40:43] = 2.0  # drift
    score[50:52], reason[50:52] = 3.0, REASONS.index("point")
    score[90], reason[90] = 2.0, REASONS.index("level shift")
    whole, thin = (
        Chart("a", Grid.ending(AT, timedelta(minutes=1), m), np.zeros(m), score=score[:m], reason=reason[:m])
        for m in (100, n)
    )
    first, second = _data(render_page("t", [whole, thin]))
    assert first["of"] == [[40, 42, "drift"], [50, 51, "point"], [90, 90, "level shift"]]
    assert [name for *_, name in second["of"]] == ["drift", "point", "level shift"]
    for start, end, _ in second["of"]:
        assert all(second["score"][i] > 1 for i in range(start, end + 1))
    assert "of" not in _data(render_page("t", [_chart()]))[0]


@pytest.mark.browser
def test_a_narrow_window_is_never_scrolled_sideways(tmp_path: Path) -> None:
    chromium = need("chromium")
    row = Row(("found", "latency-spike", "a long word " * 9, "metric_" * 15, "2026-03-01 11:40", "1h30m"), "found")
    columns = ("", "Incident", "What happened", "Series", "Began", "Found after")
    page = render_page("t", [_chart()], tables=[Table("Incidents", columns, (row,))])
    file = tmp_path / "page.html"
    # What the page says of itself goes into its title; without its policy, which lets no other script run.
    script = """<script>
      const wide = [...document.querySelectorAll(".scroll, .scroll td")].filter(e => e.scrollWidth > e.clientWidth + 1);
      const over = Math.max(0, document.documentElement.scrollWidth - innerWidth);
      document.title = [innerWidth, wide.length, over].join(":");
    </script></body>"""
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page).replace("</body>", script)
    file.write_text(page)
    run = subprocess.run(
        [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--window-size=500,900",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000", "--dump-dom", file.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert re.findall("<title>(.*?)</title>", run.stdout)[0] == "500:0:0"


@pytest.mark.browser
def test_a_browser_draws_every_chart_without_an_error(tmp_path: Path) -> None:
    chromium = need("chromium")
    window = Window(AT - timedelta(minutes=9), AT, HOSTILE, "found")
    charts = [
        _chart(title=HOSTILE, windows=(window,)),
        _chart(6000, reason=np.ones(6000)),
        Chart("gaps alone", Grid.ending(AT, timedelta(minutes=1), 9), np.full(9, np.nan)),
        Chart("one point", Grid.ending(AT, timedelta(minutes=1), 1), np.ones(1), cutoff=AT),
    ]
    file = tmp_path / "page.html"
    file.write_text(render_page("t", charts))
    run = subprocess.run(
        [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--virtual-time-budget=5000",
            "--dump-dom", file.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    # A plot for each of four charts, and a strip of scores for the two that have some.
    assert run.stdout.count("<canvas") == 6
    assert 'data-drawn="6"' in run.stdout
    assert "CONSOLE" not in run.stderr, run.stderr
