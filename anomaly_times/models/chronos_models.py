"""`chronos`: the pretrained models Chronos-2, Chronos-Bolt and Chronos-T5, zero-shot, from a folder or the hub.

They know positions, not times, so gaps are handed on as gaps and every point keeps its position.

Bolt and Chronos-2 answer the quantiles that they were trained for (0.1 to 0.9, or 0.01 to 0.99); their own code answers
the outermost of these for whatever lies beyond, which would make a 99.9 % interval as narrow as an 80 % one. Here the
outermost two go on as an exponential tail,

    Q(q) = Q(b) + (Q(b) − Q(a)) · ln((1 − b) / (1 − q)) / ln((1 − a) / (1 − b))    for q > b > a,

b the outermost level and a the one before, and likewise below: the rule of `tail_quantiles`. What lies between trained
levels is interpolated. T5 draws sample paths, of which quantiles are taken by `tail_quantiles`; it draws series by
series from one seed, so that a forecast can be repeated and no series depends on another.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, validate_call

from anomaly_times.errors import ModelError
from anomaly_times.models.profile import INSTEAD, Profile
from anomaly_times.models.season import nan_median
from anomaly_times.models.tails import tail_quantiles
from anomaly_times.panel import Floats, Panel, Quantiles

if TYPE_CHECKING:
    import torch

__all__ = ["Chronos", "chronos", "quantile_weights"]

_ROWS_A_BATCH = 64
_SEED = 0
_SHORT_HASH = 12
_DEFAULT = "amazon/chronos-bolt-small"
# torch's count of threads and its random numbers belong to the whole process.
_one_at_a_time = threading.RLock()


@dataclass(frozen=True, kw_only=True)
class Chronos:
    """A pretrained Chronos model as a `Forecaster`; build it with `chronos`, and see the module's text.

    A series with no point in the model's context, or for which it answers no numbers, is forecast by `profile`, with a
    note.
    """

    slow: ClassVar[bool] = True

    path: str
    device: str
    dtype: Literal["float32", "bfloat16"]
    context: int | None
    threads: int | None
    season: tuple[timedelta, ...] | None = None
    timezone: str = "UTC"

    @property
    def revision(self) -> str:
        """Which weights answer: a hash of a folder, the commit of a name on the hub; empty before they are here."""
        found = _fingerprint(self.path)
        return f"{self.path} {found}" if found else ""

    def forecast(self, history: Panel, *, h: int, quantiles: Sequence[float]) -> Quantiles:
        """Quantiles of the next `h` points; see `Forecaster.forecast`.

        Raises:
            ModelError: the path leads to no Chronos model, or its weights do not load.
        """
        values = np.full((history.n_series, h, len(quantiles)), np.nan)
        grid = history.grid.following(h)
        known = np.isfinite(history.y)
        some = known.any(axis=1)
        if not some.any():
            return Quantiles(history.labels, grid, tuple(quantiles), values)
        with _one_at_a_time:
            pipeline = _load(self.path, self.device, self.dtype)
            length = min(history.grid.n, pipeline.model_context_length, self.context or history.grid.n)
            y = history.y[:, -length:]
            seen = np.isfinite(y).any(axis=1)
            low, high = (bound[:, None] for bound in _range(y))
            constant = seen & (low == high)[:, 0]
            values[constant] = low[constant, :, None]
            asked = np.flatnonzero(seen & ~constant)
            if asked.size:
                try:
                    values[asked] = self._predict(pipeline, y[asked], h, quantiles)
                except Exception as exc:
                    raise ModelError(
                        f"chronos: {self.path} fails on {asked.size} series, {h} steps ahead: {_in_short(exc)}",
                        hint="is config.json that of these weights? less memory: a smaller model, or a `context`",
                    ) from exc

        notes: dict[int, str] = {}
        made_for = int(pipeline.model_prediction_length)
        if h > made_for:
            notes = dict.fromkeys(
                asked.tolist(), f"made for {made_for} steps ahead: beyond, it goes on from its own forecast"
            )
        reasons = dict.fromkeys(np.flatnonzero(some & ~seen).tolist(), f"no point among the last {length}")
        lost = asked[~np.isfinite(values[asked]).all(axis=(1, 2))]
        reasons |= dict.fromkeys(lost.tolist(), "it answered no numbers")
        if reasons:
            instead = sorted(reasons)
            fallback = Profile(season=self.season, timezone=self.timezone)
            values[instead] = fallback.forecast(history.rows(instead), h=h, quantiles=quantiles).values
            notes |= {i: f"{INSTEAD} chronos ({reasons[i]})" for i in instead}
        return Quantiles(history.labels, grid, tuple(quantiles), values, notes)

    def _predict(self, pipeline: Any, y: Floats, h: int, quantiles: Sequence[float]) -> Floats:
        """Quantiles for rows that are not constant: float64[S, h, Q]."""
        import torch

        torch.set_num_threads(self.threads or _cores())
        trained = getattr(pipeline, "quantiles", None)
        # Single precision holds neither 1e300 nor the seventh digit of a level. Bolt and Chronos-2 do not care where
        # zero lies; T5 does, for it knows multiples of the mean size.
        center = nan_median(y)[:, None] if trained else np.zeros((len(y), 1))
        half = y / 2 - center / 2
        reach = np.nanmax(np.abs(half), axis=1, keepdims=True)
        unit = torch.from_numpy((half / reach).astype(np.float32))
        with warnings.catch_warnings(), torch.random.fork_rng(enabled=trained is None):
            # Of horizons longer than it was made for, which a note says.
            warnings.simplefilter("ignore")
            rest = _trained(pipeline, unit, h, quantiles) if trained else _sampled(pipeline, unit, h, quantiles)
        with np.errstate(over="ignore"):
            out = 2 * (rest * reach[:, :, None] + center[:, :, None] / 2)
        limit = np.finfo(np.float64).max
        return np.asarray(np.clip(out, -limit, limit))


def _cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _range(y: Floats) -> tuple[Floats, Floats]:
    """The least and the greatest value of each row, gaps left out; a row without any is ±infinity."""
    there = np.isfinite(y)
    return np.where(there, y, np.inf).min(axis=1), np.where(there, y, -np.inf).max(axis=1)


def _trained(pipeline: Any, unit: torch.Tensor, h: int, quantiles: Sequence[float]) -> Floats:
    """Quantiles of models that answer some themselves: float64[S, h, Q]."""
    parts = []
    for first in range(0, len(unit), _ROWS_A_BATCH):
        answer = pipeline.predict(list(unit[first : first + _ROWS_A_BATCH]), prediction_length=h)
        # Chronos-2 answers a list, one variate a series.
        parts += [one.numpy().reshape(len(pipeline.quantiles), h) for one in answer]
    # Trained level by level, they may cross.
    own = np.sort(np.stack(parts).astype(np.float64), axis=1)
    out = np.einsum("sqh,wq->shw", own, quantile_weights(pipeline.quantiles, quantiles))
    return np.asarray(np.maximum.accumulate(out, axis=2))


def _sampled(pipeline: Any, unit: torch.Tensor, h: int, quantiles: Sequence[float]) -> Floats:
    """Quantiles of models that draw paths: float64[S, h, Q]."""
    import torch

    parts = []
    for row in unit:
        torch.manual_seed(_SEED)
        paths = pipeline.predict(row[None], prediction_length=h)[0].numpy().astype(np.float64)
        parts.append(np.maximum.accumulate(tail_quantiles(paths.T, quantiles), axis=1))
    return np.stack(parts)


def quantile_weights(trained: Sequence[float], wanted: Sequence[float]) -> Floats:
    """What each quantile that a model answers counts in each that is wanted: float64[wanted, trained].

    Linear between two trained levels; beyond the outermost two, the exponential tail through them.
    """
    levels = np.asarray(trained, dtype=np.float64)
    weights = np.empty((len(wanted), len(levels)))
    unit = np.eye(len(levels))
    for i, q in enumerate(wanted):
        if levels[0] <= q <= levels[-1]:
            weights[i] = [np.interp(q, levels, one) for one in unit]
            continue
        above = q > levels[-1]
        rest = 1 - levels[[-2, -1]] if above else levels[[1, 0]]
        inner, outer = (unit[-2], unit[-1]) if above else (unit[1], unit[0])
        depth = np.log(rest[1] / (1 - q if above else q)) / np.log(rest[0] / rest[1])
        weights[i] = outer + (outer - inner) * depth
    return weights


@lru_cache(maxsize=4)
def _load(path: str, device: str, dtype: str) -> Any:
    """The pipeline at `path`, once a process."""
    local = _is_folder(path)
    where = Path(path).expanduser()
    if local and not (where / "config.json").is_file():
        reason = "has no config.json" if where.is_dir() else "is no folder"
        raise ModelError(
            f"chronos: {path} {reason}",
            hint="`path` is a folder with config.json and model.safetensors, or the name of a model on the hub",
        )
    from chronos import BaseChronosPipeline
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call, unused-ignore]
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call, unused-ignore]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipeline = BaseChronosPipeline.from_pretrained(
                str(where) if local else path, device_map=device, dtype=dtype
            )
    except Exception as exc:
        if local:
            hint = "is it complete? `git lfs pull`, or download it again"
        else:
            hint = f"without the internet, put the model into a folder and name that: path: models/{Path(path).name}"
        raise ModelError(f"chronos: {path} does not load on {device}: {_in_short(exc)}", hint=hint) from exc
    # It tells of horizons and quantiles in words of its own, under the name of a file.
    logger = getattr(sys.modules[type(pipeline).__module__], "logger", None)
    if isinstance(logger, logging.Logger):
        logger.setLevel(logging.ERROR)
    if local and (missing := _missing_weights(pipeline.inner_model, where)):
        raise ModelError(
            f"chronos: {path} lacks {len(missing)} weights of the model, {missing[0]} among them",
            hint="the weights are of another model than config.json says",
        )
    return pipeline


def _fingerprint(path: str) -> str:
    """`sha256:…` of the configuration and the weights in a folder, or `@` and a commit of the hub; empty without."""
    if _is_folder(path):
        try:
            return f"sha256:{_digest(Path(path).expanduser())[:_SHORT_HASH]}"
        except OSError:
            return ""
    from huggingface_hub import try_to_load_from_cache

    # …/snapshots/<commit>/config.json
    found = try_to_load_from_cache(path, "config.json")
    return f"@{Path(found).parent.name[:_SHORT_HASH]}" if isinstance(found, str) else ""


@lru_cache(maxsize=16)
def _digest(folder: Path) -> str:
    """Once a process, as weights are loaded."""
    digest = hashlib.sha256()
    for name in ("config.json", *sorted(file.name for file in folder.glob("*.safetensors"))):
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _in_short(exc: Exception) -> str:
    return " ".join(f"{type(exc).__name__}: {exc}".split())[:300]


def _is_folder(path: str) -> bool:
    """Whether a path is meant, rather than a name on the hub, which is `owner/name`."""
    return path.startswith((".", "/", "~")) or path.count("/") != 1 or Path(path).is_dir()


def _missing_weights(model: Any, folder: Path) -> list[str]:
    """Names of weights that no file of `folder` holds; transformers fills those with random numbers, and goes on."""
    from safetensors import safe_open

    held: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            held |= set(weights.keys())
    own = model.state_dict()
    # One weight may have several names, of which a file holds one.
    shared = {own[name].data_ptr() for name in held & own.keys()}
    return sorted(name for name in own.keys() - held if held and own[name].data_ptr() not in shared)


@validate_call
def chronos(
    *,
    season: tuple[timedelta, ...] | None = None,
    timezone: str = "UTC",
    path: Annotated[str, Field(min_length=1, max_length=500)] = _DEFAULT,
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?|mps)$")] = "cpu",
    dtype: Literal["float32", "bfloat16"] = "float32",
    context: Annotated[int, Field(ge=2)] | None = None,
    threads: Annotated[int, Field(ge=1, le=256)] | None = None,
) -> Chronos:
    """A pretrained Chronos-2, Chronos-Bolt or Chronos-T5; `path` is a folder, or a name on the hub.

    `context` limits the newest points that it sees, `threads` those of the processor (all by default). Season and time
    zone count for the fallback alone.
    """
    # Importing them takes seconds, so until there is something to forecast they are only looked for.
    for package in ("torch", "chronos"):
        if find_spec(package) is None:
            raise ModuleNotFoundError(f"{package} is not installed")
    if "://" in path:
        raise ValueError("path must be a folder, or the name of a model on the hub; it is a URL")
    return Chronos(
        path=path, device=device, dtype=dtype, context=context, threads=threads, season=season, timezone=timezone
    )
