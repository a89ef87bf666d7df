"""The page of a backtest in a real browser: it stands alone, leads to what it tells of, and can be read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from anomaly_times.backtest import AS_IT_IS, Backtest, Trial
from anomaly_times.backtest.alerts import find_alerts
from anomaly_times.cli.backtest_page import backtest_page
from anomaly_times.cli.backtest_views import BacktestView
from anomaly_times.evidence import REASONS
from anomaly_times.mission import Mission
from anomaly_times.panel import Grid, Labels, Scores
from anomaly_times.testing import MemoryStore
from tests.browser import Browser
from tests.cli.conftest import AT, Run
from tests.cli.test_backtest import MISSION, WINDOW

pytestmark = pytest.mark.browser

DRAWN = "document.documentElement?.dataset.drawn !== undefined"
# Text that has less contrast than WCAG 2.2 asks for (1.4.3, level AA).
CONTRAST = """(() => {
  const parse = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const linear = v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = rgb => [.2126, .7152, .0722].reduce((sum, weight, i) => sum + weight * linear(rgb[i] / 255), 0);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] > .99) return c;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const e of document.querySelectorAll("main *")) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.getClientRects().length) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) poor.push([e.tagName, e.className, e.textContent.slice(0, 20), ratio.toFixed(2)].join(" "));
  }
  return poor;
})()"""


@pytest.fixture
def page(at: Run, store: MemoryStore, tmp_path: Path) -> Path:
    """Two days of three series, an alert, a found incident and a missed one."""
    (tmp_path / "web.yaml").write_text(MISSION)
    result = at("backtest", "web.yaml", *WINDOW, "-j", 1, "--plot", "report.html", "--compare", "level=99")
    assert result.exit_code == 0, result.stderr
    return tmp_path / "report.html"


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with Browser(tmp_path) as found:
        yield found


def place(browser: Browser, selector: str) -> tuple[float, float]:
    """The middle of the first such element, in the window."""
    x, y = browser.evaluate(
        f"(r => [r.x + r.width / 2, r.y + r.height / 2])(document.querySelector({selector!r}).getBoundingClientRect())"
    )
    return x, y


def pointed_at(browser: Browser, chart: int) -> datetime:
    """The time that a chart tells of where the mouse is in its middle."""
    browser.evaluate(f"document.querySelector('#chart-{chart}').scrollIntoView({{block: 'center'}})")
    browser.painted()
    x, y = place(browser, f"#chart-{chart} .u-over")
    browser.move(x, y)
    told = browser.evaluate(f"document.querySelector('#chart-{chart} .u-legend tr td').textContent")
    return datetime.fromisoformat(told).replace(tzinfo=UTC)


def test_the_page_stands_alone_and_its_summary_comes_first(browser: Browser, page: Path) -> None:
    browser.open(page, done=DRAWN)
    assert browser.requests == [page.as_uri()]
    assert browser.complaints == []
    tops = browser.evaluate(
        "['h1', '.facts', 'table', '.chart'].map(s => document.querySelector(s).getBoundingClientRect().top)"
    )
    assert tops == sorted(tops)
    assert tops[1] < 300
    facts = browser.evaluate("document.querySelector('.facts').innerText").split("\n")
    assert facts[:4] == ["Alerts", "1", "A week", "3.50"]
    assert browser.evaluate("document.querySelectorAll('.chart canvas').length") == 6


def test_an_alert_leads_to_its_series_and_zooms(browser: Browser, page: Path) -> None:
    browser.open(page, done=DRAWN)
    whole = pointed_at(browser, 1)
    assert abs(whole - (AT - timedelta(days=1))) < timedelta(hours=1)
    link = "section:nth-of-type(3) a[data-chart]"
    assert browser.evaluate(f"document.querySelector({link!r}).closest('section').innerText").startswith("Alerts")
    browser.evaluate(f"document.querySelector({link!r}).scrollIntoView({{block: 'center'}})")
    chart = browser.evaluate(f"document.querySelector({link!r}).dataset.chart")
    browser.click(*place(browser, link))
    assert browser.evaluate("location.hash") == f"#chart-{chart}"
    assert 0 <= browser.evaluate(f"document.querySelector('#chart-{chart}').getBoundingClientRect().top") < 300
    assert 'job="b"' in browser.evaluate(f"document.querySelector('#chart-{chart} h2').textContent")
    assert abs(pointed_at(browser, int(chart)) - AT) < timedelta(hours=2)
    assert abs(pointed_at(browser, 1) - AT) < timedelta(hours=2)  # all charts follow
    assert browser.complaints == []


def test_pointing_at_a_time_tells_the_numbers_and_the_reason(browser: Browser, page: Path) -> None:
    browser.open(page, done=DRAWN)
    browser.evaluate("document.querySelector('section:nth-of-type(3) a[data-chart]').click()")  # the alert: around noon
    browser.painted()
    left, width, y = browser.evaluate(
        "(r => [r.x, r.width, r.y + 20])(document.querySelector('#chart-0 .u-over').getBoundingClientRect())"
    )
    told = []
    for i in range(1, 60):
        browser.move(left + width * i / 60, y)
        told.append(browser.evaluate("document.querySelector('#chart-0 .u-legend').innerText"))
    assert any(re.search(r"score\s*\d+(\.\d+)? point", text) for text in told)
    assert any("expected" in text and "2026-03-01 11:" in text for text in told)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read(browser: Browser, page: Path, tmp_path: Path, scheme: str) -> None:
    browser.open(page, done=DRAWN)
    browser.colours(scheme)
    browser.painted()
    assert browser.evaluate(CONTRAST) == []
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    level = np.mean([int(v) for v in re.findall(r"\d+", background)[:3]])
    assert level > 200 if scheme == "light" else level < 60
    browser.screenshot(tmp_path / f"{scheme}.png")
    assert browser.evaluate("document.querySelectorAll('.chart canvas').length") == 6
    assert browser.complaints == []


@pytest.mark.slow
def test_two_hundred_series_over_four_weeks_open_with_what_is_in_sight(browser: Browser, tmp_path: Path) -> None:
    grid = Grid.ending(AT, timedelta(minutes=5), 28 * 288)
    random = np.random.default_rng(0)
    yhat = 100 + 30 * np.sin(np.arange(grid.n) / 288 * 2 * np.pi) + random.normal(0, 0.1, (200, grid.n))
    y = yhat + random.normal(0, 3, yhat.shape)
    for row in range(200):
        begin = int(random.integers(grid.n - 30))
        y[row, begin : begin + 20] += 30
    scores = Scores(
        tuple(Labels.of({"__name__": "load", "instance": f"host-{i:03d}:9100"}) for i in range(200)),
        *(grid, y, yhat, yhat - 12, yhat + 12, np.abs(y - yhat) / 12),
        reason=np.full(y.shape, REASONS.index("point"), dtype=np.float64),
    )
    made = Mission.model_validate({"name": "load", "promql": "load", "step": "5m"})
    trial = Trial(made, AS_IT_IS, grid, scores=scores, alerts=find_alerts(made, scores))
    file = tmp_path / "large.html"
    file.write_text(backtest_page(BacktestView(Backtest((trial,), {}))))
    assert file.stat().st_size < 15_000_000
    # How many charts it had drawn when it could be used: the rest follows in the background.
    drawn = "document.querySelectorAll('.chart canvas').length"
    seconds = browser.open(file, done=f"{DRAWN} && (window.atFirst ??= {drawn}) >= 0")
    print(f"{file.stat().st_size / 1e6:.1f} MB opened in {seconds:.1f} s")
    assert browser.evaluate("document.querySelectorAll('.chart').length") == 200
    assert browser.evaluate("window.atFirst") < 100
    assert browser.complaints == []
