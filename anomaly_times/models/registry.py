"""Which models there are, by name, and how one is built from a mission."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from difflib import get_close_matches
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from threading import Lock
from typing import Any, Protocol, cast

from pydantic import ValidationError

from anomaly_times.errors import AnomalyTimesError, MissingExtraError, ModelError
from anomaly_times.mission import ModelSpec
from anomaly_times.panel import Panel, Quantiles

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

ENTRY_POINTS = "anomaly_times.models"


class Forecaster(Protocol):
    """A model: history in, quantiles out; stateless, so one object serves many panels.

    Two attributes are optional: `slow = True` says that it takes seconds rather than milliseconds, and `revision`, a
    string, which weights answer. Without it the versions of the packages that compute are its revision.
    """

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
    """Takes seconds rather than milliseconds: calibration then uses few rolling origins."""
    pooled: bool = False
    """Learns across the rows of a panel, so that a row's forecast depends on the others."""
    threaded: bool = False
    """Uses all processors, or a GPU, by itself: more processes would be in its way."""
    params: dict[str, str] = field(default_factory=dict)
    """Parameters of its own, with what each means."""
    packages: tuple[str, ...] = ()
    """The distributions that compute; by default the one that the model comes with."""


Factory = Callable[..., Forecaster]
"""`factory(*, season, timezone, **params)`; an optional attribute `info` holds its `ModelInfo`."""

_AUTO = "anomaly_times.models.auto"
_BASELINE = "anomaly_times.models.baseline"
_PROFILE = "anomaly_times.models.profile"
_MIX = "anomaly_times.models.seasonmix"
_SMOOTHING = "anomaly_times.models.smoothing"
_NIXTLA = "anomaly_times.models.nixtla"
_BOOSTING = "anomaly_times.models.gradient_boosting"
_CHRONOS = "anomaly_times.models.chronos_models"

_BUILT_IN: dict[str, tuple[ModelInfo, str]] = {
    info.name: (info, where)
    for info, where in [
        (
            ModelInfo(
                "auto",
                "per series, the cheap model that has forecast its past best",
                params={"candidates": "models to choose from, the usual one first"},
            ),
            f"{_AUTO}:auto",
        ),
        (ModelInfo("seasonal_naive", "the value one season ago: the yardstick"), f"{_BASELINE}:SeasonalNaive"),
        (
            ModelInfo("profile", "robust profile of hour, day and week, corrected by recent errors"),
            f"{_PROFILE}:Profile",
        ),
        (ModelInfo("seasonmix", "a small network that mixes seasonal forecasts; trained before"), f"{_MIX}:SeasonMix"),
        (ModelInfo("holt", "exponential smoothing of level and damped trend, no season"), f"{_SMOOTHING}:Holt"),
        (
            ModelInfo(
                "ets",
                "exponential smoothing, its form chosen by AICc",
                "nixtla",
                slow=True,
                packages=("statsforecast",),
                params={"model": "error, trend, season as AutoETS spells them; ZZN by default"},
            ),
            f"{_NIXTLA}:ets",
        ),
        (
            ModelInfo(
                "theta",
                "the Theta method",
                "nixtla",
                slow=True,
                packages=("statsforecast",),
                params={"model": "Theta, OptimizedTheta (default), DynamicTheta, DynamicOptimizedTheta or AutoTheta"},
            ),
            f"{_NIXTLA}:theta",
        ),
        (
            ModelInfo(
                "arima",
                "ARIMA, its orders chosen by AICc",
                "nixtla",
                slow=True,
                packages=("statsforecast",),
                params={
                    "seasonal": "profile (default), or native: seasonal orders, which can take minutes a series",
                    "max_p": "5 by default",
                    "max_q": "5 by default",
                    "max_d": "2 by default",
                    "stepwise": "true (default), or false: every combination of orders",
                },
            ),
            f"{_NIXTLA}:arima",
        ),
        (
            ModelInfo(
                "ces",
                "complex exponential smoothing",
                "nixtla",
                slow=True,
                packages=("statsforecast",),
                params={
                    "seasonal": "profile (default), or native",
                    "model": "with `native`: Z (chosen by AICc, default), N, S, P or F",
                },
            ),
            f"{_NIXTLA}:ces",
        ),
        (
            ModelInfo(
                "holt_winters",
                "level, trend and a season of up to 24 steps",
                "nixtla",
                slow=True,
                packages=("statsforecast",),
                params={"error": "additive (default) or multiplicative"},
            ),
            f"{_NIXTLA}:holt_winters",
        ),
        (
            ModelInfo(
                "mstl",
                "several seasons by LOESS, the rest by ETS",
                "nixtla",
                slow=True,
                packages=("statsforecast",),
            ),
            f"{_NIXTLA}:mstl",
        ),
        (
            ModelInfo(
                "lgbm",
                "profile, corrected by gradient-boosted trees; one model for all series",
                "nixtla",
                slow=True,
                pooled=True,
                packages=("mlforecast", "lightgbm"),
                params={
                    "lags": "how many of the newest points it sees one by one; 12 by default",
                    "trees": "how many, at most; 200 by default",
                    "leaves": "of a tree, at most; 31 by default",
                    "learning_rate": "0.05 by default",
                    "threads": "1 by default",
                    "seed": "0 by default",
                },
            ),
            f"{_BOOSTING}:lgbm",
        ),
        (
            ModelInfo(
                "chronos",
                "pretrained transformers, zero-shot: Chronos-2, Bolt or T5",
                "chronos",
                slow=True,
                threaded=True,
                packages=("chronos-forecasting",),
                params={
                    "path": "a folder, or a name on the hub; amazon/chronos-bolt-small by default",
                    "device": "cpu (default), cuda, cuda:1 or mps",
                    "dtype": "float32 (default) or bfloat16",
                    "context": "how many of the newest points it sees, at most; what it was made for by default",
                    "threads": "all cores by default",
                },
            ),
            f"{_CHRONOS}:chronos",
        ),
    ]
}


def list_models() -> list[ModelInfo]:
    """All models that can be named, built-in ones first, then those of other packages by name.

    A model of another package that cannot be loaded is listed all the same, with the reason as its summary.
    """
    return [info for info, _ in _BUILT_IN.values()] + [_describe(point) for point in _foreign()]


def build_model(spec: ModelSpec, *, season: tuple[timedelta, ...] | None = None, timezone: str = "UTC") -> Forecaster:
    """The model that `spec` names.

    Args:
        spec: name and parameters.
        season: seasonal periods; `None` lets the model find them in the data, `()` means there is none.
        timezone: IANA name; seasonal slots begin by its clock.

    Raises:
        ModelError: unknown name or parameter (the nearest ones are offered), a value that makes no sense, or a model
            of another package that does not load.
        MissingExtraError: the model needs an optional part of the package.
    """
    factory = _factory(spec.type)
    accepted = inspect.signature(factory).parameters.values()
    names = [p.name for p in accepted if p.kind is not p.VAR_KEYWORD and p.name not in ("season", "timezone")]
    if not any(p.kind is p.VAR_KEYWORD for p in accepted):
        for name in spec.params:
            if name not in names:
                raise ModelError(f"model {spec.type!r} has no parameter {name!r}", hint=_nearest(name, names))
    try:
        return factory(season=season, timezone=timezone, **spec.params)
    except ValidationError as exc:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in exc.errors(include_url=False))
        raise ModelError(f"model {spec.type!r}: {wrong}", hint="`at models` lists the parameters") from exc
    except ImportError as exc:
        extra = next((info.extra for info in list_models() if info.name == spec.type), "")
        raise MissingExtraError(f"model {spec.type!r} needs another package: {exc}", extra=extra) from exc
    except (TypeError, ValueError) as exc:
        raise ModelError(f"model {spec.type!r}: {exc}", hint="`at models` lists the parameters") from exc


_KNOWN = 16
_building = Lock()


def known_model(spec: ModelSpec, *, season: tuple[timedelta, ...] | None, timezone: str) -> Forecaster:
    """`build_model`, but the one that was built before where this process has one: some load weights for seconds.

    The errors raised are those of `build_model`.
    """
    with _building:
        return _kept_model(spec.model_dump_json(), season, timezone)


@lru_cache(maxsize=_KNOWN)
def _kept_model(spec: str, season: tuple[timedelta, ...] | None, timezone: str) -> Forecaster:
    return build_model(ModelSpec.model_validate_json(spec), season=season, timezone=timezone)


def is_pooled(spec: ModelSpec) -> bool:
    """Whether the model learns across the rows of a panel, so that those must stay together."""
    return _info(spec.type).pooled


def is_threaded(spec: ModelSpec) -> bool:
    """Whether the model uses all processors, or a GPU, by itself."""
    return _info(spec.type).threaded


@lru_cache(maxsize=64)
def _info(name: str) -> ModelInfo:
    # Of a model that nobody knows `build_model` tells.
    return next((info for info in list_models() if info.name == name), ModelInfo(name, ""))


def revision_of(name: str, model: Forecaster) -> str:
    """What answers when `model` does: the weights that it names (`revision`), else versions (`statsforecast 2.1.1`).

    Args:
        name: what the model is called in missions.
        model: the model as it was built.
    """
    return str(getattr(model, "revision", "")) or _versions(name)


@lru_cache(maxsize=64)
def _versions(name: str) -> str:
    """The versions of what computes this model; empty where that is not known."""
    known = next((info.packages for info in list_models() if info.name == name), ())
    packages = known or (("anomaly-times",) if name in _BUILT_IN else ())
    try:
        return ", ".join(f"{package} {version(package)}" for package in packages)
    except PackageNotFoundError:
        return ""


def current_revision(spec: ModelSpec) -> str:
    """`revision_of` the model that `spec` names as it is installed here; empty where it does not load."""
    try:
        return revision_of(spec.type, build_model(spec))
    except AnomalyTimesError:
        return ""


def _factory(name: str) -> Factory:
    if name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name][1].partition(":")
        return cast(Factory, getattr(import_module(module), attribute))
    for point in _foreign():
        if point.name == name:
            try:
                return cast(Factory, point.load())
            except Exception as exc:
                raise ModelError(f"model {name!r} of {point.value} does not load: {exc}") from exc
    raise ModelError(f"there is no model {name!r}", hint=_nearest(name, [info.name for info in list_models()]))


def _foreign() -> Iterator[EntryPoint]:
    return (p for p in sorted(entry_points(group=ENTRY_POINTS), key=lambda p: p.name) if p.name not in _BUILT_IN)


def _describe(point: EntryPoint) -> ModelInfo:
    try:
        info: Any = getattr(point.load(), "info", None)
    except Exception as exc:  # noqa: BLE001 - one broken package must not hide the other models
        return ModelInfo(point.name, f"does not load: {exc}")
    known = info if isinstance(info, ModelInfo) else ModelInfo(point.name, f"from {point.value.partition(':')[0]}")
    packages = known.packages or ((point.dist.name,) if point.dist is not None else ())
    # Missions name the entry point, whatever the model calls itself.
    return replace(known, name=point.name, packages=packages)


def _nearest(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known)
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    return f"known: {', '.join(known)}" if known else "it takes none"
