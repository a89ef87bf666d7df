"""Tables fit a terminal, and none of their figures is ever cut."""

from __future__ import annotations

import re

import numpy as np
import pytest

from anomaly_times.cli import render
from anomaly_times.panel import Labels, Panel
from anomaly_times.testing import MemoryStore
from tests.cli.conftest import QUERY, Run, requests

COMMON = ("--promql", QUERY, "--step", "10m", "--model", "seasonal_naive", "--at", "2026-03-01T12:00:30Z", "--dry-run")
HOSTS = [f"shop-frontend-{i:03}.eu.example.com:9100" for i in range(3)]
WIDTHS = (60, 80, 100, 120)


def _printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def _figures(text: str) -> list[str]:
    """Numbers and times in the lines of series, in order of length and value: folding moves them."""
    rows = text.partition("─\n")[2].partition("\nand ")[0].partition("3 series")[0].partition(" points of ")[0]
    rows = re.sub(r"shop\S*|\{\S*|[▁-█]", " ", rows)
    return sorted(re.findall(r"\d\S*", rows))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("command", ["forecast", "detect"])
def test_a_terminal_shortens_sparklines_then_names_and_no_figure(
    at: Run, store: MemoryStore, monkeypatch: pytest.MonkeyPatch, command: str, width: int
) -> None:
    panel = requests()
    labels = [Labels.of({"instance": host, "job": "shop"}) for host in HOSTS]
    store.series[QUERY] = Panel(tuple(labels), panel.grid, np.nan_to_num(panel.y, nan=100.0) / 1000)
    args = (command, *COMMON, *(["--last", "26h"] if command == "detect" else []))
    whole = at(*args).stdout
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("FORCE_COLOR", "1")
    shown = re.sub(r"\x1b\[[0-9;]*m", "", at(*args).stdout)
    lines = [line.rstrip() for line in shown.splitlines()]
    table = lines[next(i for i, line in enumerate(lines) if "──" in line) - 1 :]
    assert all(len(line) <= width for line in table[:-2])
    assert _figures(shown) == _figures(whole)
    names = [cut[0] for line in table if (cut := re.match(r'\{instance="shop\S*?(…|"\})', line))]
    assert len(set(names)) == 3
    assert all(len(name) >= 20 for name in names)


def test_sparklines_give_way_before_names(at: Run, store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = {}
    for width in (60, 80, 90, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        shown = at("forecast", *COMMON).stdout
        assert '{job="a"}' in shown
        blocks[width] = len(re.findall("[▁-█]", next(line for line in shown.splitlines() if '{job="a"}' in line)))
    assert blocks == {60: 0, 80: 0, 90: 24, 200: 36}  # the forecast has twelve steps


@pytest.mark.parametrize("width", WIDTHS)
def test_text_is_folded_and_nothing_of_it_lost(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    message = "the query matches nothing now: its series are gone since the exporter of the shop was moved elsewhere"
    label = '{instance="shop-frontend-007.eu.example.com:9100",job="shop"}'
    columns = ("mission", ">points", "where", "remarks")
    render.say_table(columns, [("a-mission", "1,234,567", label, message)])
    lines = _printed(capsys)
    assert all(len(line) <= width for line in lines)
    assert "1,234,567" in "\n".join(lines)
    letters = "".join(sorted("".join(lines[2:]).replace(" ", "")))
    assert letters == "".join(sorted(f"a-mission1,234,567{label}{message}".replace(" ", "")))


def test_figures_run_over_a_terminal_that_is_too_narrow_for_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    render.say_table(("<series", ">a", ">b"), [("x" * 30, "1234567890", "0.2421 … 0.5678")])
    assert _printed(capsys)[2:] == ["xxxxxxxxxxxxxxxxxxx…", "  1234567890  0.2421 …", " " * 16 + "0.5678"]


@pytest.mark.parametrize("width", WIDTHS)
def test_the_models_and_what_they_do_are_whole_on_any_terminal(
    at: Run, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    whole = at("models").stdout
    monkeypatch.setenv("COLUMNS", str(width))
    shown = at("models").stdout
    assert all(len(line) <= width for line in shown.splitlines() if not line.startswith("["))
    assert sorted(shown.replace("─", "").split()) == sorted(whole.replace("─", "").split())
