"""Chronos: tiny models with random weights are built, saved, loaded and run for real."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anomaly_times.errors import MissingExtraError, ModelError
from anomaly_times.mission import ModelSpec
from anomaly_times.models import Forecaster, build_model, chronos_models
from anomaly_times.models.chronos_models import quantile_weights
from anomaly_times.panel import Floats
from anomaly_times.testing import CONTRACT, a_gap_never_shifts_a_phase, panel_of

# Importing torch alone takes seconds.
pytestmark = pytest.mark.slow

TENTHS = [round(0.1 * i, 1) for i in range(1, 10)]
LEVELS = (0.0005, 0.1, 0.5, 0.9, 0.9995)
# Weights that nobody trained know no phase.
PROMISES = [case for case in CONTRACT if case is not a_gap_never_shifts_a_phase]


def save_bolt(folder: Path) -> None:
    import torch
    from chronos.chronos_bolt import ChronosBoltModelForForecasting
    from transformers import T5Config

    torch.manual_seed(1)
    config = T5Config(
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
        pad_token_id=0,
        architectures=["ChronosBoltModelForForecasting"],
    )
    config.chronos_pipeline_class = "ChronosBoltPipeline"
    config.chronos_config = {
        "context_length": 64,
        "prediction_length": 16,
        "input_patch_size": 8,
        "input_patch_stride": 8,
        "quantiles": TENTHS,
        "use_reg_token": True,
    }
    ChronosBoltModelForForecasting(config).save_pretrained(folder)


def save_chronos2(folder: Path) -> None:
    import torch
    from chronos.chronos2 import Chronos2Model
    from chronos.chronos2.config import Chronos2CoreConfig

    torch.manual_seed(2)
    config = Chronos2CoreConfig(d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, architectures=["Chronos2Model"])
    config.chronos_pipeline_class = "Chronos2Pipeline"
    config.chronos_config = {
        "context_length": 64,
        "output_patch_size": 8,
        "input_patch_size": 8,
        "input_patch_stride": 8,
        "quantiles": [0.01, 0.05, *TENTHS, 0.95, 0.99],
        "use_reg_token": True,
        "use_arcsinh": True,
        "max_output_patches": 2,
    }
    Chronos2Model(config).save_pretrained(folder)


def save_t5(folder: Path) -> None:
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(3)
    config = T5Config(
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        vocab_size=64,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        architectures=["T5ForConditionalGeneration"],
    )
    config.chronos_config = {
        "tokenizer_class": "MeanScaleUniformBins",
        "tokenizer_kwargs": {"low_limit": -15.0, "high_limit": 15.0},
        "context_length": 64,
        "prediction_length": 16,
        "n_tokens": 64,
        "n_special_tokens": 2,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "use_eos_token": True,
        "model_type": "seq2seq",
        "num_samples": 8,
        "temperature": 1.0,
        "top_k": 50,
        "top_p": 1.0,
    }
    T5ForConditionalGeneration(config).save_pretrained(folder)


SAVE: dict[str, Callable[[Path], None]] = {"bolt": save_bolt, "chronos2": save_chronos2, "t5": save_t5}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder with a tiny model of each family."""
    root = tmp_path_factory.mktemp("chronos")
    for name, save in SAVE.items():
        save(root / name)
    return {name: root / name for name in SAVE}


@pytest.fixture(params=list(SAVE))
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    return folders[request.param]


def chronos(path: Path | str, **params: Any) -> Forecaster:
    return build_model(ModelSpec(type="chronos", path=str(path), threads=1, **params))


def rhythm(rows: int = 3, n: int = 60) -> Floats:
    random = np.random.default_rng(4)
    return 50 + 10 * np.sin(np.arange(n) * 2 * np.pi / 12) + random.standard_normal((rows, n))


@pytest.mark.parametrize("case", PROMISES, ids=lambda case: case.__name__)
def test_each_family_keeps_the_contract(folder: Path, case: Callable[[Forecaster], None]) -> None:
    case(chronos(folder))


def test_quantiles_past_the_trained_ones_go_on_and_are_not_clamped(folder: Path) -> None:
    levels = (0.0005, 0.05, 0.1, 0.5, 0.9, 0.95, 0.9995)
    answer = chronos(folder).forecast(panel_of(rhythm()), h=4, quantiles=levels)
    assert (np.diff(answer.values, axis=2) >= 0).all()
    assert (answer.at(0.9995) > answer.at(0.95)).all()
    assert (answer.at(0.0005) < answer.at(0.05)).all()


def test_the_tail_is_that_of_an_exponential_and_trained_levels_are_as_they_are() -> None:
    def exponential(q: Floats) -> Floats:
        return np.where(q < 0.5, np.log(2 * q), -np.log(2 * (1 - q)))

    wanted = np.array([0.0005, 0.05, 0.1, 0.3, 0.9, 0.99, 0.9995])
    found = quantile_weights(TENTHS, wanted.tolist()) @ exponential(np.array(TENTHS))
    np.testing.assert_allclose(found, exponential(wanted), atol=1e-9)
    between = quantile_weights(TENTHS, [0.25]) @ np.array(TENTHS)
    assert between[0] == pytest.approx(0.25)


@pytest.mark.parametrize("name", ["bolt", "chronos2"])
def test_trained_quantiles_are_those_of_the_pipeline(folders: dict[str, Path], name: str) -> None:
    import torch
    from chronos import BaseChronosPipeline

    y = rhythm(1)
    pipeline = BaseChronosPipeline.from_pretrained(str(folders[name]))
    levels = pipeline.quantiles
    theirs, _ = pipeline.predict_quantiles([torch.tensor(y[0], dtype=torch.float32)], 8, levels)
    ours = chronos(folders[name]).forecast(panel_of(y), h=8, quantiles=levels)
    # Nobody trained them, so they cross; ours do not fall.
    expected = np.sort(np.stack([np.asarray(one) for one in theirs]).reshape(8, len(levels)), axis=1)
    np.testing.assert_allclose(ours.values[0], expected, rtol=1e-3, atol=0.05)


def test_a_gap_keeps_its_position(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    pipeline = chronos_models._load(str(folders["bolt"]), "cpu", "float32")
    real = pipeline.predict

    def predict(inputs: Sequence[Any], **options: Any) -> Any:
        given.extend(one.numpy() for one in inputs)
        return real(inputs, **options)

    monkeypatch.setattr(pipeline, "predict", predict)
    y = rhythm(2, 80)
    y[0, 70:75] = np.nan
    chronos(folders["bolt"]).forecast(panel_of(y), h=4, quantiles=(0.1, 0.5, 0.9))
    assert [one.shape for one in given] == [(64,), (64,)]
    assert np.flatnonzero(np.isnan(given[0])).tolist() == [54, 55, 56, 57, 58]
    assert not np.isnan(given[1]).any()


def test_weights_are_loaded_once(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import chronos as library

    loads = []
    real = library.BaseChronosPipeline.from_pretrained

    def load(path: str, **options: Any) -> Any:
        loads.append(path)
        return real(path, **options)

    chronos_models._load.cache_clear()
    monkeypatch.setattr(library.BaseChronosPipeline, "from_pretrained", load)
    history = panel_of(rhythm())
    for _ in range(3):
        model = pickle.loads(pickle.dumps(chronos(folders["bolt"])))
        model.forecast(history, h=4, quantiles=(0.1, 0.5, 0.9))
    assert loads == [str(folders["bolt"])]


def test_threads_are_set(folders: dict[str, Path]) -> None:
    import torch

    torch.set_num_threads(2)
    chronos(folders["bolt"]).forecast(panel_of(rhythm()), h=4, quantiles=(0.1, 0.5, 0.9))
    assert torch.get_num_threads() == 1


def test_a_horizon_beyond_what_it_was_made_for_is_told(folder: Path) -> None:
    y = rhythm(2)
    y[1] = 5.0
    model = chronos(folder)
    assert model.forecast(panel_of(y), h=16, quantiles=LEVELS).notes == {}
    answer = model.forecast(panel_of(y), h=17, quantiles=LEVELS)
    assert answer.notes == {0: "made for 16 steps ahead: beyond, it goes on from its own forecast"}
    assert (answer.values[1] == 5.0).all()


def test_a_series_without_a_point_in_the_context_falls_back_by_name(folders: dict[str, Path]) -> None:
    y = rhythm(2, 60)
    y[1, 20:] = np.nan
    history = panel_of(y)
    answer = chronos(folders["bolt"], context=24).forecast(history, h=4, quantiles=LEVELS)
    assert answer.notes == {1: "profile instead of chronos (no point among the last 24)"}
    profile = build_model(ModelSpec(type="profile")).forecast(history.rows([1]), h=4, quantiles=LEVELS)
    np.testing.assert_array_equal(answer.values[1], profile.values[0])


def forecast(path: Path | str, **params: Any) -> None:
    chronos(path, **params).forecast(panel_of(rhythm(1)), h=4, quantiles=(0.1, 0.5, 0.9))


def test_a_path_that_leads_to_no_model_is_an_error_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is no folder") as caught:
        forecast(tmp_path / "nowhere")
    assert "config.json" in caught.value.hint
    with pytest.raises(ModelError, match=r"has no config\.json"):
        forecast(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(ModelError, match="Not a Chronos config file"):
        forecast(tmp_path)


def test_a_name_on_the_hub_without_the_internet_is_an_error_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="amazon/chronos-of-no-size does not load") as caught:
        forecast("amazon/chronos-of-no-size")
    assert "path: models/chronos-of-no-size" in caught.value.hint


@pytest.mark.parametrize("spoil", ["cut", "other", "none"])
def test_weights_that_do_not_load_are_an_error(folders: dict[str, Path], tmp_path: Path, spoil: str) -> None:
    from safetensors.numpy import load_file, save_file

    source = folders["bolt"]
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    weights = tmp_path / "model.safetensors"
    if spoil == "cut":
        weights.write_bytes((source / "model.safetensors").read_bytes()[:-1000])
    elif spoil == "other":
        kept = load_file(source / "model.safetensors")
        lost = next(name for name in kept if "output_patch_embedding" in name)
        save_file({name: value for name, value in kept.items() if name != lost}, weights)
    with pytest.raises(ModelError, match="lacks 1 weights" if spoil == "other" else "does not load on cpu") as caught:
        forecast(tmp_path)
    assert caught.value.hint


@pytest.mark.parametrize(
    "params", [{"device": "abacus"}, {"dtype": "float8"}, {"context": 1}, {"path": "s3://bucket/model"}]
)
def test_a_parameter_that_makes_no_sense_is_refused(params: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=next(iter(params))):
        build_model(ModelSpec(type="chronos", **params))


def test_without_its_packages_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chronos_models, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="torch") as caught:
        build_model(ModelSpec(type="chronos"))
    assert "anomaly-times[chronos]" in caught.value.hint


def test_a_revision_changes_with_the_weights_and_with_nothing_else(folders: dict[str, Path], tmp_path: Path) -> None:
    def revision(folder: Path) -> str:
        return str(getattr(build_model(ModelSpec(type="chronos", path=str(folder))), "revision", ""))

    shutil.copytree(folders["bolt"], tmp_path / "same")
    shutil.copytree(folders["bolt"], tmp_path / "other")
    with (tmp_path / "other" / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x42")
    first, same, other = (revision(folder) for folder in (folders["bolt"], tmp_path / "same", tmp_path / "other"))
    assert first.split(" sha256:")[0] == str(folders["bolt"])
    assert first.split(" sha256:")[1] == same.split(" sha256:")[1] != other.split(" sha256:")[1]
    assert revision(tmp_path) == ""


def test_a_name_on_the_hub_has_the_commit_that_was_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.file_download as download

    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "models--someone--tiny"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(commit)
    (cached / "snapshots" / commit).mkdir(parents=True)
    (cached / "snapshots" / commit / "config.json").write_text("{}")
    monkeypatch.setattr(download, "HF_HUB_CACHE", str(tmp_path), raising=False)
    monkeypatch.setattr(download.constants, "HF_HUB_CACHE", str(tmp_path))
    for path, revision in (("someone/tiny", "someone/tiny @0123456789ab"), ("someone/else", "")):
        model = build_model(ModelSpec(type="chronos", path=path))
        assert getattr(model, "revision", "") == revision
