"""`python -m benchmarks [--series N] [--missions N] [--only read …]`: a table, and bench-results/speed.json."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks import backtests, missions, speed
from benchmarks.measure import Row

GROUPS = {
    "startup": speed.startup,
    "models": speed.models,
    "read": speed.read,
    "detect": speed.detect,
    "backtest": backtests.backtest,
}
MISSIONS = "missions"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=int, default=10_000)
    parser.add_argument("--points", type=int, default=2_016)
    parser.add_argument("--missions", type=int, default=10_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=[*GROUPS, MISSIONS], default=[*GROUPS, MISSIONS])
    parser.add_argument("--json", type=Path, default=Path("bench-results/speed.json"))
    args = parser.parse_args()

    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        work = speed.Work(Path(folder), args.series, args.points, args.repeat)
        try:
            for name in args.only:
                print(f"# {name}", file=sys.stderr, flush=True)
                rows += missions.everything(args.missions, args.repeat) if name == MISSIONS else GROUPS[name](work)
        finally:
            work.stop()

    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    packages = {name: version(name) for name in ("anomaly-times", "numpy", "polars", "statsforecast", "httpx")}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(
        json.dumps(
            {
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "series": args.series,
                "points": args.points,
                "missions": args.missions,
                "machine": machine,
                "packages": packages,
                "rows": [row.as_dict() for row in rows],
            },
            indent=2,
        )
    )
    print(f"\n{args.series:,} series × {args.points:,} points at 5 minutes, {machine}, {packages}\n")
    print("| what | figure | runs | beside | target |\n| --- | --- | --- | --- | --- |")
    for row in rows:
        print(row.as_markdown())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
