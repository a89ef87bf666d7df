from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from anomaly_times.models.seasonmix import LEVELS, Weights
from anomaly_times.models.seasonmix_features import BASES, describe

torch = pytest.importorskip("torch")

from anomaly_times.training import seasonmix as training  # noqa: E402 - needs torch
from anomaly_times.training.seasonmix import Examples, Network, Run, export, make_examples, validate  # noqa: E402


@pytest.fixture(scope="module")
def examples() -> Examples:
    return Examples.joined([make_examples(seed, 48) for seed in (1, 2)])


def test_a_shard_is_the_same_whenever_it_is_made(examples: Examples) -> None:
    again = Examples.joined([make_examples(seed, 48) for seed in (1, 2)])
    np.testing.assert_array_equal(examples.lead, again.lead)
    np.testing.assert_array_equal(examples.target, again.target)


def test_examples_are_finite_and_some_base_is_near_the_target(examples: Examples) -> None:
    for part in (examples.static, examples.lead, examples.bases):
        assert np.isfinite(part).all()
    assert examples.ahead.min() >= 1
    nearest = np.abs(examples.target[..., None].astype(float) - examples.bases).min(axis=-1)
    assert np.nanmedian(nearest) < 0.2 * np.nanmedian(np.abs(examples.target.astype(float)))


def test_numpy_answers_what_torch_was_trained_to(tmp_path: Path) -> None:
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    y = random.standard_normal((9, 300)).cumsum(axis=1)
    told = describe(y, np.tile(np.arange(1, 21), (9, 1)), (24, 168))
    network = Network(told.static.shape[1], told.lead.shape[0])
    network.fit_scales(make_examples(3, 32))
    static, lead, bases = (
        torch.from_numpy(np.ascontiguousarray(x))
        for x in (told.static, told.lead.transpose(1, 2, 0), told.bases.transpose(1, 2, 0))
    )
    with torch.no_grad():
        plain = network(static, lead, bases).numpy()
    export(network, tmp_path / "weights.npz", revision="test")
    answer = Weights.load(tmp_path / "weights.npz").answer(told).transpose(1, 2, 0)
    assert answer.shape == (9, 20, len(LEVELS))
    # Half precision costs the third digit; numpy's levels rise outwards from the median, torch's are as they come.
    middle = len(LEVELS) // 2
    np.testing.assert_allclose(answer[..., middle], plain[..., middle], atol=0.05)
    upward = np.maximum.accumulate(plain[..., middle:], axis=-1)
    np.testing.assert_allclose(answer[..., middle:], upward, atol=0.05)


def test_learning_makes_it_better_than_it_was(examples: Examples) -> None:
    torch.manual_seed(0)
    run = Run.begun(examples)
    before = validate(run.network, examples)
    random = np.random.default_rng(0)
    for _ in range(120):
        run.learn(examples.tensors(random.integers(0, len(examples), 64)), rate=2e-3)
    after = validate(run.network, examples)
    assert after.pinball < 0.9 * before.pinball
    assert run.step == 120
    assert after.covered_90 > 0.5


def test_a_run_goes_on_from_its_checkpoint(tmp_path: Path, examples: Examples) -> None:
    run = Run.begun(examples)
    run.learn(examples.tensors(slice(0, 32)), rate=1e-3)
    run.shard = 7
    run.save(tmp_path / "run.pt")
    other = Run.begun(examples)
    other.restore(tmp_path / "run.pt")
    assert (other.step, other.shard) == (1, 7)
    batch = examples.tensors(slice(32, 64))
    assert other.learn(batch, rate=1e-3) == run.learn(batch, rate=1e-3)
    for mine, theirs in zip(run.average.parameters(), other.average.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_the_rate_warms_up_stays_and_falls() -> None:
    share = training.share_of_rate
    assert share(0, 10_000) < 0.01
    assert share(600, 10_000) == share(4_900, 10_000) == 1
    assert 0.4 < share(7_500, 10_000) < 0.6
    assert share(10_000, 10_000) == pytest.approx(0.01)
    # What came before the fall does not depend on how long the run is.
    assert share(3_000, 10_000) == share(3_000, 50_000)


def test_the_loss_is_least_at_the_true_quantiles() -> None:
    torch.manual_seed(0)
    target = torch.randn(20_000, 1)
    truth = torch.distributions.Normal(0, 1).icdf(torch.tensor(LEVELS)).expand(20_000, 1, -1)
    best = training.pinball(truth, target)
    for other in (truth * 0.8, truth * 1.3, truth + 0.2):
        assert training.pinball(other, target) > best
    with_gap = target.clone()
    with_gap[0] = float("nan")
    assert torch.isfinite(training.pinball(truth, with_gap))


@pytest.mark.slow
def test_one_command_trains_and_writes_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_VALIDATION_SHARDS", 1)
    monkeypatch.setattr(training, "_SERIES_A_SHARD", 64)
    monkeypatch.setattr(training, "_FEWEST_SHARDS", 2)
    out = tmp_path / "weights.npz"
    training.main(["--out", str(out), "--steps", "5", "--batch", "32"])
    weights = Weights.load(out)
    assert weights.revision == "1.5"
    assert len(weights.out[0]) == len(LEVELS) + len(BASES)
    training.main(["--out", str(out), "--steps", "7", "--batch", "32"])
    assert Weights.load(out).revision == "1.7"


@pytest.mark.slow
def test_two_trainers_learn_one_network(tmp_path: Path) -> None:
    out = tmp_path / "weights.npz"
    code = (
        "import sys; from anomaly_times.training import seasonmix as t; "
        "t._VALIDATION_SHARDS, t._SERIES_A_SHARD, t._FEWEST_SHARDS = 1, 64, 2; "
        "t._train_as(int(sys.argv[1]), t._asked(sys.argv[3:]), sys.argv[2])"
    )
    arguments = [f"file://{tmp_path}/meeting", "--out", str(out), "--steps", "3", "--batch", "32", "--trainers", "2"]
    trainers = [subprocess.Popen([sys.executable, "-c", code, str(rank), *arguments]) for rank in (0, 1)]
    assert [trainer.wait(timeout=240) for trainer in trainers] == [0, 0]
    assert Weights.load(out).revision == "1.3"
