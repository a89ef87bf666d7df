"""Missions by the thousand: `python -m benchmarks.missions validate|sync|pack|hour [--missions N] [--repeat R] …`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path

from anomaly_times.plan import PACK_SIZE
from benchmarks.measure import Row, cpu_seconds, timed
from tests.servers import Server

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


@contextmanager
def prefect(folder: Path, *, on_postgres: bool) -> Iterator[Server]:
    """A fresh Prefect server that has the base deployments."""
    from tests.postgres import postgres
    from tests.prefect_bases import base_deployments
    from tests.prefect_server import prefect_server

    with postgres() if on_postgres else nullcontext() as database:
        # The tests plan runs more often than Prefect does by itself.
        settings = {"PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "60"}
        server = prefect_server(folder, database=database, **settings)
        try:
            base_deployments(server.url)
            yield server
        finally:
            server.stop()


def sync(count: int, repeat: int, *, on_postgres: bool = False) -> list[Row]:
    """An apply of new missions on a fresh Prefect server, and plans and applies with nothing to do."""
    from anomaly_times.loading import load_missions
    from anomaly_times.plan import Plan
    from anomaly_times.scheduling import sync
    from anomaly_times.scheduling.server import PrefectServer

    def now() -> datetime:
        return datetime.now(UTC)

    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)
        (folder / "missions").mkdir()
        write_missions(folder / "missions", count)
        missions = [loaded.mission for loaded in load_missions([folder / "missions"]).missions]
        with (
            prefect(folder / "server", on_postgres=on_postgres) as running,
            PrefectServer(running.url + "/api") as server,
        ):

            def apply() -> None:
                sync.apply(server, missions, project="bench", clock=now)

            def plan() -> Plan:
                return sync.plan(server, missions, project="bench", now=now())

            def busy(job: Callable[[], object], repeat: int) -> tuple[tuple[float, ...], str]:
                """Seconds of each run, and the processor time of one, which other work on the machine changes less."""
                ours, theirs = time.process_time(), cpu_seconds(running.process.pid)
                seconds = timed(job, repeat)
                ours, theirs = time.process_time() - ours, cpu_seconds(running.process.pid) - theirs
                return seconds, f"processor time: server {theirs / repeat:.3g} s, ours {ours / repeat:.3g} s"

            new = busy(apply, 1)
            assert plan().empty
            again = busy(apply, repeat)
            nothing = busy(plan, repeat)
    share = count / 10_000
    database = "PostgreSQL" if on_postgres else "SQLite"
    return [
        Row(f"apply of {count:,} new missions, {database}", "s", *new, f"< {180 * share:.3g} s"),
        Row(f"plan with nothing to do, {count:,} deployed, {database}", "s", *nothing, f"< {30 * share:.3g} s"),
        Row(f"apply with nothing to do, {count:,} deployed, {database}", "s", *again),
    ]


def everything(count: int, repeat: int) -> list[Row]:
    """All of it: files, an apply and plans of `count` missions, a pack at work, and an hour of Prefect's time."""
    from benchmarks.packs import an_hour, one_pack

    return [*offline(1_000, repeat), *sync(count, repeat), *one_pack(PACK_SIZE, repeat), *an_hour(count)]


def main() -> int:
    from benchmarks.packs import an_hour, one_pack

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["validate", "sync", "pack", "hour"])
    parser.add_argument("--missions", type=int, help="1,000 to validate, 500 in a pack, 10,000 otherwise")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--live", action="store_true", help="validate: ask a real VictoriaMetrics too")
    parser.add_argument("--postgres", action="store_true", help="sync: on PostgreSQL, not SQLite")
    args = parser.parse_args()
    if args.what == "validate":
        count = args.missions or 1_000
        rows = offline(count, args.repeat) + (live(count) if args.live else [])
    elif args.what == "sync":
        rows = sync(args.missions or 10_000, args.repeat, on_postgres=args.postgres)
    elif args.what == "pack":
        rows = one_pack(args.missions or PACK_SIZE, args.repeat)
    else:
        rows = an_hour(args.missions or 10_000)
    print(f"{os.cpu_count()} cores, load average at the end {os.getloadavg()[1]:.1f}\n")
    print("| what | figure | runs | beside | target |\n| --- | --- | --- | --- | --- |")
    for row in rows:
        print(row.as_markdown())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
