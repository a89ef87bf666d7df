"""Models that turn history into quantiles, and the registry that finds them by name."""

from __future__ import annotations

from anomaly_times.models.registry import (
    Forecaster,
    ModelInfo,
    build_model,
    current_revision,
    is_pooled,
    is_threaded,
    known_model,
    list_models,
    revision_of,
)

__all__ = [
    "Forecaster",
    "ModelInfo",
    "build_model",
    "current_revision",
    "is_pooled",
    "is_threaded",
    "known_model",
    "list_models",
    "revision_of",
]
