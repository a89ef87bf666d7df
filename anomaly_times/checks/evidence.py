"""What a source said about a mission, as checks take it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import NamedTuple

from anomaly_times.errors import NoSeriesError, QueryError
from anomaly_times.panel import Labels, Panel

__all__ = ["LOOKS", "Dead", "Evidence"]

LOOKS = 48
"""In so many places the lookback is looked at."""


class Dead(NamedTuple):
    """A selector that matches nothing: which, why, and what would."""

    selector: str
    why: str
    hint: str


@dataclass(frozen=True)
class Evidence:
    """What a source says about one mission at one time.

    `refused` and `nothing` are errors that the query as a whole got; all else is empty then. `count` is how many
    series it answers now. `seen` is the lookback at `LOOKS` times (`None` where it was not read, `flood` where there
    were too many series in it); `recent` are the newest points at the mission's step. `intervals` are the measured
    scrape intervals by selector, `types` what metrics are by their name, `ahead` whether forecasts would be written
    at the times that they are for.
    """

    refused: QueryError | None = None
    nothing: NoSeriesError | None = None
    dead: tuple[Dead, ...] = ()
    count: int = 0
    seen: Panel | None = None
    recent: Panel | None = None
    flood: bool = False
    intervals: Mapping[str, timedelta] = field(default_factory=dict)
    types: Mapping[str, str] = field(default_factory=dict)
    ahead: bool = False

    @property
    def labels(self) -> tuple[Labels, ...]:
        """The series that there are now, or were in the lookback."""
        panel = self.recent or self.seen
        return panel.labels if panel else ()
