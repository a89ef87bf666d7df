"""Missions by the thousand: `python -m benchmarks.missions validate|sync [--missions N] [--repeat R] [--live]`."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.measure import Row, timed

FILES = 50


def write_missions(folder: Path, count: int) -> None:
    """Files of a few missions each, as a team has them: defaults, a sum of rates, some gates."""
    for file in range(FILES):
        lines = ["defaults: {step: 1m, labels: {team: shop}}", "missions:"]
        for i in range(file, count, FILES):
            lines += [
                f"- name: mission-{i}",
                f"  promql: 'sum by (service) (rate(bench_total{{job=\"job-{i % 20}\"}}[5m]))'",
                "  forecast: {every: 1h, lookback: 14d, model: profile}",
                "  detect: {direction: above, min_relative_deviation: 20%, valid_range: [0, .inf]}",
            ]
        (folder / f"team-{file}.yaml").write_text("\n".join(lines) + "\n")


def offline(count: int, repeat: int) -> list[Row]:
    """From files to a report, in this process; and the whole command in one of its own."""
    from anomaly_times.checks import check_missions
    from anomaly_times.loading import load_missions

    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)
        write_missions(folder, count)

        def once() -> None:
            report = check_missions(load_missions([folder]), now=datetime.now(UTC))
            assert (report.missions, report.problems) == (count, ()), report.problems[:3]

        def command() -> None:
            args = [sys.executable, "-m", "anomaly_times.cli", "mission", "validate", str(folder), "--offline"]
            subprocess.run(args, check=True, capture_output=True)

        once()
        target = "2 s a thousand"
        return [
            Row(f"{count:,} missions loaded and checked offline", "s", timed(once, repeat), target=target),
            Row(f"at mission validate --offline, {count:,} missions", "s", timed(command, repeat), target=target),
        ]


def live(count: int) -> list[Row]:
    """The same with a VictoriaMetrics that holds two weeks of 20 jobs with ten series each."""
    from anomaly_times.checks import check_missions
    from anomaly_times.loading import load_missions
    from anomaly_times.settings import Source
    from anomaly_times.stores import open_store
    from tests.servers import fetch, victoria_metrics

    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)
        (folder / "missions").mkdir()
        write_missions(folder / "missions", count)
        server = victoria_metrics(folder / "server")
        try:
            now = int(time.time())
            times = [t * 1000 for t in range(now - 14 * 86400, now, 60)]
            for job in range(20):
                lines = [
                    json.dumps(
                        {
                            "metric": {"__name__": "bench_total", "job": f"job-{job}", "service": f"s{i}"},
                            "values": list(range(0, 60 * len(times), 60)),
                            "timestamps": times,
                        }
                    )
                    for i in range(10)
                ]
                fetch(f"{server.url}/api/v1/import", data="\n".join(lines).encode(), timeout=60)
            server.flush()
            with open_store(Source(url=server.url), state=folder) as store:
                loading = load_missions([folder / "missions"])
                before = time.perf_counter()
                report = check_missions(loading, now=datetime.now(UTC), stores={"": store})
                seconds = time.perf_counter() - before
            assert not report.unchecked
            assert len(report.costs) == count
        finally:
            server.stop()
    return [Row(f"{count:,} missions checked live, server on the same machine", "s", (seconds,))]


def sync(count: int, repeat: int) -> list[Row]:
    """An apply of new missions on a fresh Prefect server with SQLite, and plans with nothing to do."""
    from anomaly_times.loading import load_missions
    from anomaly_times.plan import Plan
    from anomaly_times.scheduling import sync
    from anomaly_times.scheduling.server import PrefectServer
    from tests.prefect_bases import base_deployments
    from tests.prefect_server import prefect_server

    def now() -> datetime:
        return datetime.now(UTC)

    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)
        (folder / "missions").mkdir()
        write_missions(folder / "missions", count)
        missions = [loaded.mission for loaded in load_missions([folder / "missions"]).missions]
        running = prefect_server(folder / "server")
        base_deployments(running.url)
        try:
            with PrefectServer(running.url + "/api") as server:

                def apply() -> None:
                    sync.apply(server, missions, project="bench", clock=now)

                def plan() -> Plan:
                    return sync.plan(server, missions, project="bench", now=now())

                seconds = timed(apply, 1)
                assert plan().empty
                again = timed(apply, repeat)
                nothing = timed(plan, repeat)
        finally:
            running.stop()
    share = count / 10_000
    return [
        Row(f"apply of {count:,} new missions, SQLite", "s", seconds, target=f"{180 * share:.3g} s"),
        Row(f"plan with nothing to do, {count:,} deployed", "s", nothing, target=f"{30 * share:.3g} s"),
        Row(f"apply with nothing to do, {count:,} deployed", "s", again),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["validate", "sync"])
    parser.add_argument("--missions", type=int, default=1000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--live", action="store_true", help="ask a real VictoriaMetrics too")
    args = parser.parse_args()
    if args.what == "sync":
        rows = sync(args.missions, args.repeat)
    else:
        rows = offline(args.missions, args.repeat) + (live(args.missions) if args.live else [])
    print("| what | figure | runs | beside | target |\n| --- | --- | --- | --- | --- |")
    for row in rows:
        print(row.as_markdown())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
