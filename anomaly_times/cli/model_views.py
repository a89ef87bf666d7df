"""Which model each series got, whatever prints it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from anomaly_times.cli.views import JSON_SCHEMA, Cell, counted, distinct_names
from anomaly_times.durations import format_duration
from anomaly_times.mission import Mission
from anomaly_times.models import current_revision
from anomaly_times.models.season import find_seasons
from anomaly_times.panel import Choice, Forecast
from anomaly_times.passes import ForecastResult

__all__ = ["ExplainView"]


@dataclass(frozen=True, eq=False)
class ExplainView:
    """One line a series: its model, the reason, its seasons, and how the candidates did.

    `named` is what a series got for which nothing was compared.
    """

    mission: Mission
    forecast: Forecast
    seasons: tuple[tuple[timedelta, ...], ...]
    named: Choice
    top: int = 0

    @classmethod
    def of(cls, result: ForecastResult, *, top: int = 0) -> ExplainView:
        """The view of a pass's result, which kept its history; at most `top` lines of it in the table (0: all).

        Raises:
            AnomalyTimesError: the one that the result carries.
        """
        if result.error is not None:
            raise result.error
        if result.forecast is None or result.history is None:
            raise ValueError("models are explained by the history that they saw")
        step, given = result.history.grid.step, result.mission.season
        if given is None:
            found = find_seasons(result.history, timezone=result.mission.timezone)
            seasons = tuple(tuple(n * step for n in row) for row in found)
        else:
            seasons = (tuple(given),) * len(result.forecast.labels)
        spec = result.mission.forecast.model
        named = Choice(spec.type, "named, so nothing was compared", revision=current_revision(spec))
        return cls(result.mission, result.forecast, seasons, named, top)

    @property
    def columns(self) -> tuple[str, ...]:
        """The table's columns."""
        return ("<series", "model", "seasons", "<why", "<past losses beside the usual model's")

    def rows(self) -> list[tuple[Cell, ...]]:
        """One row a series, in the order of their labels."""
        names = distinct_names(self.forecast.labels)
        rows: list[tuple[Cell, ...]] = []
        for i, name in enumerate(names[: self.top or None]):
            choice = self._choice(i)
            others = sorted(choice.losses.items(), key=lambda item: item[1])
            losses = ", ".join(f"{model} {loss:+.0f} %" for model, loss in others if loss)
            rows.append((name, choice.model, " ".join(map(format_duration, self.seasons[i])), choice.why, losses))
        return rows

    def summary(self) -> list[str]:
        """How many series each model got, and which revision of it."""
        choices = [self._choice(i) for i in range(len(self.forecast.labels))]
        got = Counter(choice.model for choice in choices)
        shares = ", ".join(f"{model} {n:,}" for model, n in got.most_common())
        revisions = dict.fromkeys(f"{choice.model}: {choice.revision}" for choice in choices if choice.revision)
        return [f"{counted(len(choices), 'series', 'series')}: {shares}", *revisions]

    def notes(self) -> list[str]:
        """How many lines the table left out."""
        more = len(self.forecast.labels) - self.top
        return [f"{more:,} more series; --top 0 shows all"] if self.top and more > 0 else []

    def document(self) -> dict[str, Any]:
        """All series for JSON."""
        return {
            "schema": JSON_SCHEMA,
            "kind": "models",
            "promql": self.mission.promql,
            "asked": self.mission.forecast.model.type,
            "series": [self._entry(i) for i in range(len(self.forecast.labels))],
        }

    def _entry(self, i: int) -> dict[str, Any]:
        choice = self._choice(i)
        return {
            "labels": dict(self.forecast.labels[i]),
            "model": choice.model,
            "revision": choice.revision or None,
            "why": choice.why,
            "losses": dict(choice.losses),
            "seasons": [format_duration(one) for one in self.seasons[i]],
            "warming": i in self.forecast.warming,
        }

    def _choice(self, i: int) -> Choice:
        return self.forecast.models.get(i, self.named)
