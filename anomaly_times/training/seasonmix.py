"""Train `seasonmix` on made-up series: `python -m anomaly_times.training.seasonmix --out seasonmix.npz`.

Generator processes stream shards of examples, each made from its own number, so no series is ever made twice and a run
can be repeated. The trainer draws its batches from a window of the newest shards. The learning rate is constant and
falls in the last part of the run; what is exported is the moving average of the weights. A run that was cut off goes on
from the checkpoint beside its output, with an empty window and, where asked, another number of steps.

Needs `pip install 'anomaly-times[train]'`.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, fields
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Self

# Every process computes on one thread; more would fight for the cores. To be said before the libraries load.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, distributed, nn

from anomaly_times.models.seasonmix import LEVELS, Layer, Weights
from anomaly_times.models.seasonmix_features import BASES, blocks, describe
from anomaly_times.training.synthetic import Batch, make_batch

__all__ = ["Examples", "Network", "Run", "Scores", "export", "main", "make_examples", "train", "validate"]

_SERIES_A_SHARD, _LEADS = 512, 16
_TARGET_LIMIT = 50.0
# An example that is drawn often, or from few, is learned by heart.
_SHARDS_KEPT, _FEWEST_SHARDS, _DRAWN_EACH = 192, 24, 2
_SHARDS_A_BATCH = 8
_VALIDATION_SEED, _VALIDATION_SHARDS, _VALIDATE_EVERY = 1_000_000_007, 24, 1000
_SEEDS_A_RUN, _SEEDS_A_TRAINER = 100_000_000, 1_000_000
_WARM_UP, _FALLING_SHARE, _LOWEST_SHARE = 500, 0.5, 0.01
_AVERAGE = 0.999

F16 = npt.NDArray[np.float16]
F32 = npt.NDArray[np.float32]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Examples:
    """What the network learns from: features, bases and targets of `n` cut-offs at `L` leads each.

    `static` is float16[n, …], `lead` float16[n, L, …], `bases` float16[n, L, B], `target` float16[n, L] in units
    relative to the reference, NaN where there is none; `ahead` (int16[n, L]) are the leads.
    """

    static: F16
    lead: F16
    bases: F16
    target: F16
    ahead: npt.NDArray[np.int16]

    @classmethod
    def joined(cls, parts: Sequence[Examples]) -> Examples:
        """All of them, one after another."""
        return cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))

    def __len__(self) -> int:
        return len(self.target)

    def tensors(self, rows: npt.NDArray[np.intp] | slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features of the series and of the leads, bases and targets of these rows, in single precision."""
        static, lead, bases, target = (
            torch.from_numpy(x[rows]).float() for x in (self.static, self.lead, self.bases, self.target)
        )
        return static, lead, bases, target


def make_examples(seed: int, n_series: int = _SERIES_A_SHARD) -> Examples:
    """The shard of this number: two cut-offs of each of `n_series` fresh series."""
    rng = np.random.default_rng(seed)
    batch = make_batch(rng, n_series)
    n_points, h = batch.shape.n_points, batch.shape.h
    newest = _at_cutoff(rng, batch, batch.history, batch.future)
    cut = int(rng.integers(n_points // 3, n_points - min(n_points // 3, 48)))
    begin = int(rng.integers(0, cut // 2)) if rng.random() < 0.5 else 0
    later = np.concatenate([batch.history[:, cut:], batch.future], axis=1)[:, :h]
    return Examples.joined([newest, _at_cutoff(rng, batch, batch.history[:, begin:cut], later)])


def _at_cutoff(rng: np.random.Generator, batch: Batch, history: F32, future: F32) -> Examples:
    calendar, season = _told(rng, batch.shape.calendar)
    parts = []
    for block in blocks(history.astype(np.float64), _LEADS):
        steps = _leads(rng, len(block.rows), future.shape[1])
        ahead = steps + block.late[:, None]
        told = describe(block.y, ahead, calendar, season)
        value = np.take_along_axis(future[block.rows], steps - 1, axis=1)
        # A series that never moved has no unit, and nothing to learn from.
        moved = told.scale[:, 0] > 0
        target = (((value - told.center)[moved] / told.scale[moved]) - told.reference[moved]) / told.unit[moved]
        parts.append(
            Examples(
                told.static[moved].astype(np.float16),
                told.lead.transpose(1, 2, 0)[moved].astype(np.float16),
                told.bases.transpose(1, 2, 0)[moved].astype(np.float16),
                np.clip(target, -_TARGET_LIMIT, _TARGET_LIMIT).astype(np.float16),
                ahead[moved].astype(np.int16),
            )
        )
    return Examples.joined(parts)


def _told(rng: np.random.Generator, calendar: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """The calendar and the season that a batch is described with: now and then none, or one that was given."""
    chance = rng.random()
    if chance < 0.03:
        return (), ()
    if chance < 0.1:
        return (), None
    return calendar, tuple(p for p in calendar if p > 12) if chance > 0.95 else None


def _leads(rng: np.random.Generator, n: int, h: int) -> npt.NDArray[np.intp]:
    """Steps ahead, 1 … h: half of them evenly spread, half by their logarithm."""
    near = np.exp(rng.uniform(0, np.log(h + 1), (n, _LEADS // 2))).astype(np.intp)
    evenly = rng.integers(1, h + 1, (n, _LEADS - near.shape[1]))
    return np.asarray(np.minimum(np.concatenate([near, evenly], axis=1), h))


class Network(nn.Module):
    """An encoder that sees a series once, and a small head that sees it at each lead.

    The head answers a softmax over the bases and, for every level of `LEVELS`, a distance from their mixture.
    """

    static_mean: Tensor
    static_spread: Tensor
    lead_mean: Tensor
    lead_spread: Tensor

    def __init__(self, n_static: int, n_lead: int, *, encoder: int = 256, head: int = 128) -> None:
        super().__init__()
        self.encode = nn.ModuleList([nn.Linear(n_static, encoder), nn.Linear(encoder, encoder)])
        self.shared = nn.Linear(encoder, head)
        self.at_lead = nn.Linear(n_lead, head, bias=False)
        self.hidden = nn.ModuleList([nn.Linear(head, head) for _ in range(2)])
        self.out = nn.Linear(head, len(LEVELS) + len(BASES))
        for name, size in (("static", n_static), ("lead", n_lead)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_spread", torch.ones(size))
        with torch.no_grad():
            # Begins close to the plain mean of the bases.
            self.out.weight *= 0.3

    def forward(self, static: Tensor, lead: Tensor, bases: Tensor) -> Tensor:
        """Quantiles in units, float[n, L, len(LEVELS)], of features as `Examples` holds them."""
        x = torch.relu(self.encode[0]((static - self.static_mean) / self.static_spread))
        x = x + torch.relu(self.encode[1](x))
        x = torch.relu(self.shared(x)[:, None] + self.at_lead((lead - self.lead_mean) / self.lead_spread))
        for layer in self.hidden:
            x = x + torch.relu(layer(x))
        answer: Tensor = self.out(x).float()
        distance, logits = answer[..., : len(LEVELS)], answer[..., len(LEVELS) :]
        return distance + (torch.softmax(logits, -1) * bases).sum(-1, keepdim=True)

    def fit_scales(self, examples: Examples) -> None:
        """Take the means and spreads of the features from `examples`."""
        static, lead, _, _ = examples.tensors(slice(None))
        for x, mean, spread in (
            (static, self.static_mean, self.static_spread),
            (lead.flatten(0, 1), self.lead_mean, self.lead_spread),
        ):
            mean.copy_(x.mean(0))
            spread.copy_(x.std(0) + 0.05)


def pinball(answer: Tensor, target: Tensor) -> Tensor:
    """The loss: pinball losses of all levels, a mean in which the outer levels and the median count more.

    Their own losses are small (2,000 times smaller at 0.0005 than at 0.5 for a normal distribution), and tails that
    nobody asked for are learned late.
    """
    levels = torch.tensor(LEVELS)
    weight = (4 * levels * (1 - levels)) ** -0.4
    weight[len(LEVELS) // 2] *= 2
    there = torch.isfinite(target)
    error = torch.nan_to_num(target)[..., None] - answer
    losses = torch.maximum(levels * error, (levels - 1) * error)
    return ((losses * weight).mean(-1) * there).sum() / there.sum()


@dataclass
class Run:
    """A training run at one step: the network, its moving average, the optimiser, and how far it has come."""

    network: Network
    average: Network
    optimiser: torch.optim.Optimizer
    step: int = 0
    shard: int = 0

    @classmethod
    def begun(cls, examples: Examples) -> Self:
        """A run that has not learned anything; `examples` tell the scales of the features."""
        network = Network(examples.static.shape[1], examples.lead.shape[2])
        network.fit_scales(examples)
        return cls(network, deepcopy(network), torch.optim.AdamW(network.parameters(), weight_decay=1e-4))

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint."""
        saved: dict[str, Any] = torch.load(path, weights_only=True)
        for name in ("network", "average", "optimiser"):
            getattr(self, name).load_state_dict(saved[name])
        self.step, self.shard = saved["step"], saved["shard"]

    def save(self, path: Path) -> None:
        """Write a checkpoint; one that was there is replaced when the new one is whole."""
        parts = {name: getattr(self, name).state_dict() for name in ("network", "average", "optimiser")}
        torch.save({"step": self.step, "shard": self.shard, **parts}, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    def learn(self, batch: tuple[Tensor, Tensor, Tensor, Tensor], *, rate: float) -> float:
        """One step on one batch, and on those of the other trainers; the loss of this one."""
        *given, target = batch
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        # Half precision suffices for products; twice as fast where the processor knows bfloat16.
        with torch.autocast("cpu", dtype=torch.bfloat16):
            answer = self.network(*given)
        loss = pinball(answer, target)
        self.optimiser.zero_grad()
        torch.autograd.backward(loss)
        if distributed.is_initialized():
            _average_gradients(self.network)
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        with torch.no_grad():
            keep = min(_AVERAGE, self.step / (self.step + 10))
            for mean, now in zip(self.average.parameters(), self.network.parameters(), strict=True):
                mean.lerp_(now, 1 - keep)
        return loss.item()


def _average_gradients(network: nn.Module) -> None:
    """Give every trainer the mean of the gradients of all."""
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients]) / distributed.get_world_size()
    distributed.all_reduce(flat)
    parts = torch.split(flat, [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def train(out: Path, *, steps: int, rate: float, batch: int, processes: int, seed: int) -> None:
    """Train for `steps` in all, from the checkpoint beside `out` where there is one, and write the weights to `out`.

    Args:
        out: the file of weights; the checkpoint is `out` with the suffix `.pt`.
        steps: batches in all.
        rate: learning rate before it falls.
        batch: examples in a batch of this trainer.
        processes: generators beside this trainer.
        seed: of the run.

    Where `torch.distributed` is initialised, this is one of several trainers that learn the same network from different
    series; the first one writes.
    """
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    shards = range(_VALIDATION_SEED, _VALIDATION_SEED + _VALIDATION_SHARDS) if rank == 0 else ()
    checks = [make_examples(number, _SERIES_A_SHARD // 2) for number in shards]
    run = Run.begun(make_examples(seed * _SEEDS_A_RUN))
    checkpoint = out.with_suffix(".pt")
    if checkpoint.exists():
        run.restore(checkpoint)
    rng = np.random.default_rng([seed, run.step, rank])
    n_weights = sum(p.numel() for p in run.network.parameters())
    _log.info("%s weights, step %s of %s", f"{n_weights:,}", f"{run.step:,}", f"{steps:,}")
    kept: deque[Examples] = deque(maxlen=_SHARDS_KEPT)
    loss, began, first = 0.0, time.monotonic(), run.step
    for examples in _stream(seed * _SEEDS_A_RUN + rank * _SEEDS_A_TRAINER + run.shard, processes):
        kept.append(examples)
        run.shard += 1
        if len(kept) < _FEWEST_SHARDS:
            continue
        for _ in range(_DRAWN_EACH * len(examples) // batch):
            now = run.learn(_draw(rng, kept, batch), rate=rate * share_of_rate(run.step, steps))
            loss += (now - loss) * max(0.002, 1 / (run.step - first))
            if rank == 0 and (run.step % _VALIDATE_EVERY == 0 or run.step >= steps):
                pace = (run.step - first) / (time.monotonic() - began)
                told = validate(run.average, Examples.joined(checks))
                _log.info("step %d  shard %d  loss %.4f  %s  %.1f steps/s", run.step, run.shard, loss, told, pace)
                run.save(checkpoint)
                export(run.average, out, revision=f"{seed}.{run.step}")
            if run.step >= steps:
                return


def _draw(rng: np.random.Generator, kept: Sequence[Examples], batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A batch of examples from several shards, since those of one shard have step and length in common."""
    some = [kept[i] for i in rng.integers(0, len(kept), _SHARDS_A_BATCH)]
    drawn = [part.tensors(rng.integers(0, len(part), batch // _SHARDS_A_BATCH)) for part in some]
    static, lead, bases, target = (torch.cat(parts) for parts in zip(*drawn, strict=True))
    return static, lead, bases, target


def share_of_rate(step: int, steps: int) -> float:
    """How much of the learning rate holds at `step`: it warms up, stays, and falls along a cosine at the end.

    The trapezoid of Zhai et al., *Scaling Vision Transformers*, CVPR 2022: what comes before the fall does not depend
    on `steps`, so that a run can be prolonged.
    """
    falling = (step - (1 - _FALLING_SHARE) * steps) / (_FALLING_SHARE * steps)
    cosine = 0.5 * (1 + np.cos(np.pi * min(1.0, max(0.0, falling))))
    return float(min(1.0, (step + 1) / _WARM_UP) * (_LOWEST_SHARE + (1 - _LOWEST_SHARE) * cosine))


def _stream(first: int, processes: int) -> Iterator[Examples]:
    """Shards in the order of their numbers, a few of them made ahead."""
    pool = ProcessPoolExecutor(processes)
    try:
        ahead: deque[Future[Examples]] = deque(pool.submit(make_examples, first + i) for i in range(2 * processes))
        number = first + len(ahead)
        while True:
            examples = ahead.popleft().result()
            ahead.append(pool.submit(make_examples, number))
            number += 1
            yield examples
    finally:
        # Waited for: a process that ends while its pool still does leaves workers waiting for a word that never comes.
        pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class Scores:
    """Errors on series that no training saw, in units of each series.

    `pinball` is twice the mean pinball loss over 0.1 … 0.9, `by_lead` the same for leads up to 6, 48, 144 and beyond.
    """

    pinball: float
    absolute: float
    covered_90: float
    covered_999: float
    by_lead: tuple[float, ...]

    def __str__(self) -> str:
        leads = " ".join(f"{x:.4f}" for x in self.by_lead)
        return (
            f"pinball {self.pinball:.4f} ({leads})  absolute {self.absolute:.4f}  "
            f"covered {self.covered_90:.3f} of 90 %, {self.covered_999:.4f} of 99.9 %"
        )


@torch.no_grad()
def validate(network: Network, examples: Examples) -> Scores:
    """How well the network does on `examples`."""
    answers = []
    for first in range(0, len(examples), 1024):
        *given, _ = examples.tensors(slice(first, first + 1024))
        answers.append(network(*given).numpy())
    answer = np.sort(np.concatenate(answers), axis=-1)
    target = examples.target.astype(np.float32)
    there = np.isfinite(target)
    levels = np.array(LEVELS, dtype=np.float32)
    error = target[..., None] - answer
    middle = (levels > 0.09) & (levels < 0.91)
    losses = 2 * np.maximum(levels * error, (levels - 1) * error)[..., middle].mean(axis=-1)
    inside = (target[..., None] >= answer[..., [4, 0]]) & (target[..., None] <= answer[..., [-5, -1]])
    edges = pairwise((0, 6, 48, 144, np.iinfo(np.int16).max))
    return Scores(
        pinball=float(losses[there].mean()),
        absolute=float(np.abs(error[..., len(levels) // 2])[there].mean()),
        covered_90=float(inside[..., 0][there].mean()),
        covered_999=float(inside[..., 1][there].mean()),
        by_lead=tuple(
            float(losses[there & (examples.ahead > low) & (examples.ahead <= high)].mean()) for low, high in edges
        ),
    )


def export(network: Network, out: Path, *, revision: str) -> None:
    """Write the weights as `SeasonMix` reads them, the scales of the features folded into the first layers."""
    first, offset = _layer(network.encode[0])
    first = first / network.static_spread.numpy()
    at_lead = network.at_lead.weight.detach().numpy() / network.lead_spread.numpy()
    shared, shared_offset = _layer(network.shared)
    Weights(
        encode=((first, offset - first @ network.static_mean.numpy()), _layer(network.encode[1])),
        shared=(shared, shared_offset - at_lead @ network.lead_mean.numpy()),
        at_lead=at_lead,
        hidden=tuple(_layer(layer) for layer in network.hidden),
        out=_layer(network.out),
        revision=revision,
    ).save(out)


def _layer(layer: nn.Module) -> Layer:
    parameters = dict(layer.named_parameters())
    return parameters["weight"].detach().numpy(), parameters["bias"].detach().numpy()


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and train."""
    asked = _asked(argv)
    if asked.trainers == 1:
        _train_as(0, asked, None)
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(asked.trainers, mp_context=get_context("spawn")) as pool,
    ):
        meeting = f"file://{folder}/meeting"
        for trainer in [pool.submit(_train_as, rank, asked, meeting) for rank in range(asked.trainers)]:
            trainer.result()


def _asked(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the file of weights; the checkpoint lies beside it")
    parser.add_argument("--steps", type=int, default=60_000, help="batches in all")
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate before it falls")
    parser.add_argument("--batch", type=int, default=264, help="examples in a batch, of all trainers together")
    parser.add_argument("--trainers", type=int, default=1, help="processes that share each batch")
    parser.add_argument("--generators", type=int, default=1, help="processes beside each trainer that make series")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args(argv)


def _train_as(rank: int, asked: argparse.Namespace, meeting: str | None) -> None:
    """Be the trainer `rank` of those that meet at the URL `meeting`."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if meeting:
        # They are all on this machine, whatever its name resolves to.
        if sys.platform == "linux":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=asked.trainers)
    train(
        asked.out,
        steps=asked.steps,
        rate=asked.rate,
        batch=asked.batch // asked.trainers,
        processes=asked.generators,
        seed=asked.seed,
    )
    if meeting:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
