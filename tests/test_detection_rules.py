"""The alert rules beside the docs mean on Prometheus and on vmalert what the page about detection says of them."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from anomaly_times.evidence import LEVEL_SHIFT, REASONS
from tests import servers
from tests.servers import fetch, free_port, need

RULES = Path(__file__).resolve().parents[1] / "docs" / "detection-rules.yaml"
END = 600
"""Minutes that a test of rules is about; they are asked at the last."""


def _series(name: str, labels: str, last: Sequence[float], *, step: int = 1, usual: float = 0, ago: int = 0) -> Any:
    """A series for promtool, every `step` minutes, of which the `last` points end `ago` minutes before the end."""
    points = [*([usual] * (END // step + 1 - len(last))), *last]
    minutes: list[str] = ["_"] * (END + 1)
    for i, value in enumerate(reversed(points)):
        at = END - ago - i * step
        if at >= 0:
            minutes[at] = str(value)
    return {"series": f"{name}{{{labels}}}", "values": " ".join(minutes)}


def _alerts(folder: Path, alert: str, series: Sequence[Any], expected: Sequence[Any]) -> str:
    """What promtool says of the rules; empty where `alert` is told as `expected`."""
    test = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": list(series),
                "alert_rule_test": [{"eval_time": f"{END}m", "alertname": alert, "exp_alerts": list(expected)}],
            }
        ],
    }
    file = folder / "test.json"
    file.write_text(json.dumps(test))
    run = subprocess.run([need("promtool"), "test", "rules", str(file)], capture_output=True, text=True, timeout=120)
    return "" if run.returncode == 0 else run.stdout + run.stderr


def _page(mission: str, n: int, worst: str) -> Any:
    annotations = {"summary": f"{mission}: {n} series anomalous", "worst": worst}
    return {"exp_labels": {"mission": mission, "severity": "page"}, "exp_annotations": annotations}


@pytest.mark.servers
def test_prometheus_and_vmalert_take_the_rules() -> None:
    subprocess.run([need("promtool"), "check", "rules", str(RULES)], check=True, capture_output=True, timeout=60)
    subprocess.run([need("vmalert"), "-dryRun", f"-rule={RULES}"], check=True, capture_output=True, timeout=60)


@pytest.mark.servers
@pytest.mark.parametrize("step", [1, 5, 15, 60])
@pytest.mark.parametrize(
    ("last", "pages"),
    [([9, 0, 0, 0, 0], False), ([9, 0.5, 0.5, 0.5, 9], False), ([3, 0.5, 3, 0.5, 3], True), ([2, 2, 2, 2, 2], True)],
)
def test_three_of_the_last_five_points_page_at_any_step(
    tmp_path: Path, last: list[float], pages: bool, step: int
) -> None:
    series = [
        # A detection is late by a part of a step, and by the offset of 30 s at least.
        _series("anomaly_score", 'mission="m",pod="a"', last, step=step, ago=max(1, step // 2)),
        _series("anomaly_reason", 'mission="m",pod="a"', [3] * 5, step=step, ago=max(1, step // 2)),
    ]
    assert _alerts(tmp_path, "Anomaly", series, [_page("m", 1, "drift in pod=a")] if pages else []) == ""


@pytest.mark.servers
def test_one_page_a_mission_counts_the_series_and_names_the_worst(tmp_path: Path) -> None:
    series = []
    for pod, score, reason in (("a", 2, 0), ("b", 7, LEVEL_SHIFT), ("c", 0.5, 1)):
        series += [
            _series("anomaly_score", f'mission="m",pod="{pod}"', [score] * 6),
            _series("anomaly_reason", f'mission="m",pod="{pod}"', [reason] * 6),
        ]
    series.append(_series("anomaly_score", 'mission="quiet",pod="a"', [0.9] * 6))
    assert _alerts(tmp_path, "Anomaly", series, [_page("m", 2, "level shift in pod=b")]) == ""


@pytest.mark.servers
@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_is_told_in_words(tmp_path: Path, reason: str) -> None:
    series = [
        _series("anomaly_score", 'mission="m"', [2] * 6),
        _series("anomaly_reason", 'mission="m"', [REASONS.index(reason)] * 6),
    ]
    assert _alerts(tmp_path, "Anomaly", series, [_page("m", 1, f"{reason} in")]) == ""


@pytest.mark.servers
@pytest.mark.parametrize("ago", [6, 12, 20, 35, 70, 120, 240])
def test_a_series_that_ended_pages_no_more(tmp_path: Path, ago: int) -> None:
    series = [_series("anomaly_score", 'mission="m"', [5.0] * 300, ago=ago)]
    assert _alerts(tmp_path, "Anomaly", series, []) == ""


@pytest.mark.servers
def test_an_incident_is_one_ticket_until_it_is_over(tmp_path: Path) -> None:
    calm = [_series("anomaly_score", 'mission="m"', [0.2] * 60), _series("anomaly_reason", 'mission="m"', [0] * 60)]
    lasting = _series("anomaly_incident", 'mission="m"', [1.5] * 60, usual=2)
    annotations = {"summary": "m: an incident in 1 series", "worst": "none is over 1 now"}
    ticket = {"exp_labels": {"mission": "m", "severity": "ticket"}, "exp_annotations": annotations}
    assert _alerts(tmp_path, "AnomalyIncident", [*calm, lasting], [ticket]) == ""
    over = _series("anomaly_incident", 'mission="m"', [1.5] * 60, usual=2, ago=110)
    assert _alerts(tmp_path, "AnomalyIncident", [*calm, over], []) == ""


@pytest.mark.servers
def test_vmalert_says_level_shift(start: Callable[..., servers.Server], tmp_path: Path) -> None:
    server = start(servers.victoria_metrics)
    now = int(time.time()) // 60 * 60
    lines = []
    for i in range(1, 30):
        at = (now - 60 * i) * 1000
        for pod, score, reason in (("a", 4, LEVEL_SHIFT), ("b", 2, 0)):
            labels = f'{{mission="m",pod="{pod}"}}'
            lines += [f"anomaly_score{labels} {score} {at}", f"anomaly_reason{labels} {reason} {at}"]
            lines.append(f"anomaly_incident{labels} 2 {at}")
    fetch(f"{server.url}/api/v1/import/prometheus", data="\n".join(lines).encode())
    server.flush()

    alerts: dict[str, Any] = {}
    address = f"127.0.0.1:{free_port()}"
    command = [
        *(need("vmalert"), f"-rule={RULES}", f"-datasource.url={server.url}", "-evaluationInterval=1s"),
        *(f"-httpListenAddr={address}", "-notifier.url=http://127.0.0.1:9"),
    ]
    vmalert = servers.Server("vmalert", command, f"http://{address}", "/health", tmp_path).start()
    try:
        deadline = time.monotonic() + 60
        while len(alerts) < 3 and time.monotonic() < deadline:
            time.sleep(0.2)
            answer = json.loads(fetch(f"{vmalert.url}/api/v1/alerts"))
            alerts = {alert["name"]: alert["annotations"] for alert in answer["data"]["alerts"] or []}
    finally:
        vmalert.stop()
    assert alerts == {
        "Anomaly": {"summary": "m: 2 series anomalous", "worst": "level shift in pod=a"},
        "AnomalyIncident": {"summary": "m: an incident in 2 series", "worst": "level shift in pod=a"},
        "AnomalyLevelShift": {
            "summary": "m: level shift in 1 series",
            "action": "if it is there to stay: at mission rebase m --since TIME",
        },
    }
