"""Which models there are, by name, and how one is built from a mission."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol

from anomaly_times.mission import ModelSpec
from anomaly_times.panel import Panel, Quantiles

__all__ = ["Forecaster", "ModelInfo", "build_model", "list_models"]


class Forecaster(Protocol):
    """A model: history in, quantiles out; stateless, so one object serves many panels."""

    def forecast(self, history: Panel, *, h: int, quantiles: Sequence[float]) -> Quantiles:
        """Quantiles of the `h` points that follow `history`.

        Args:
            history: float64[S, T] with NaN for gaps; a gap never shifts the phase of a season.
            h: steps ahead, at least 1.
            quantiles: rising, inside (0, 1).

        Returns:
            `Quantiles` with the rows of `history` in the same order; values do not fall along the quantiles; a row is
            all NaN only where the series has no point at all. A row for which the model had to fall back has a note.

        Raises:
            ModelError: if the model cannot work at all on such a panel.
        """
        ...


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One entry of the registry; `summary` is the line that `at models` shows."""

    name: str
    summary: str
    extra: str = ""
    """The optional part of the package that it needs, e.g. `nixtla`."""
    slow: bool = False
    """Fits series by series: calibration then uses few rolling origins."""
    params: dict[str, str] = field(default_factory=dict)
    """Parameters of its own, with what each means."""


def list_models() -> list[ModelInfo]:
    """All models that can be named, built-in ones first, then those of other packages."""
    raise NotImplementedError


def build_model(spec: ModelSpec, *, season: tuple[timedelta, ...] | None = None, timezone: str = "UTC") -> Forecaster:
    """The model that `spec` names.

    Args:
        spec: name and parameters.
        season: seasonal periods; `None` lets the model find them in the data, `()` means there is none.
        timezone: IANA name; seasonal slots begin by its clock.

    Raises:
        ModelError: unknown name or parameter (the nearest ones are offered).
        MissingExtraError: the model needs an optional part of the package.
    """
    raise NotImplementedError
