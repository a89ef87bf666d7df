"""`python -m anomaly_times.cli` is `at`."""

from __future__ import annotations

from anomaly_times.cli import main

if __name__ == "__main__":
    main()
