from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from importlib.metadata import EntryPoint, entry_points, version
from typing import Any

import pytest

from anomaly_times.errors import MissingExtraError, ModelError
from anomaly_times.mission import ModelSpec
from anomaly_times.models import (
    ModelInfo,
    build_model,
    current_revision,
    list_models,
    nixtla,
    registry,
    revision_of,
)
from anomaly_times.models.baseline import SeasonalNaive
from anomaly_times.models.profile import Profile
from anomaly_times.models.seasonmix import SeasonMix
from anomaly_times.panel import Panel, Quantiles


class Halves:
    """A model of another package, with a parameter of its own."""

    info = ModelInfo("halves", "half of the last value", params={"share": "of the last value"})

    def __init__(self, *, season: object, timezone: str, share: float = 0.5) -> None:
        if not 0 < share < 1:
            raise ValueError("share must lie between 0 and 1")
        self.share, self.season, self.timezone = share, season, timezone

    def forecast(self, history: Panel, *, h: int, quantiles: Sequence[float]) -> Quantiles:
        raise NotImplementedError


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("halves", f"{__name__}:Halves", registry.ENTRY_POINTS),
        EntryPoint("broken", "a_package_that_is_gone:Model", registry.ENTRY_POINTS),
        EntryPoint("profile", f"{__name__}:Halves", registry.ENTRY_POINTS),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == registry.ENTRY_POINTS else [])


def spec(**fields: Any) -> ModelSpec:
    return ModelSpec.model_validate(fields)


def test_built_in_models_are_listed_once_and_the_default_first() -> None:
    names = [info.name for info in list_models()]
    assert names[0] == "auto"
    assert len(names) == len(set(names))


def test_what_needs_an_extra_says_so() -> None:
    nixtla = {"ets", "theta", "arima", "ces", "holt_winters", "mstl", "lgbm"}
    assert {info.name for info in list_models() if info.extra == "nixtla"} == nixtla
    assert all(info.slow for info in list_models() if info.name in nixtla)


def test_a_model_gets_season_and_time_zone() -> None:
    day = (timedelta(days=1),)
    assert build_model(spec(type="seasonal_naive"), season=day, timezone="Europe/Berlin") == SeasonalNaive(
        season=day, timezone="Europe/Berlin"
    )


def test_an_unknown_model_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(ModelError, match="no model 'profil'") as caught:
        build_model(spec(type="profil"))
    assert "profile" in caught.value.hint
    assert "ets" not in caught.value.hint


def test_an_unknown_parameter_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(ModelError, match="no parameter 'modell'") as caught:
        build_model(spec(type="ets", modell="ANN"))
    assert caught.value.hint == "did you mean 'model'?"
    with pytest.raises(ModelError, match="no parameter 'xyz'") as caught:
        build_model(spec(type="ets", xyz=1))
    assert caught.value.hint == "known: model"
    with pytest.raises(ModelError, match="no parameter 'season'"):
        build_model(spec(type="profile", season="1d"))


@pytest.mark.parametrize("value", ["AAA", 7])
def test_a_parameter_that_makes_no_sense_is_refused(value: object) -> None:
    with pytest.raises(ModelError, match=r"model 'ets': model: "):
        build_model(spec(type="ets", model=value))


def test_a_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nixtla, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="statsforecast") as caught:
        build_model(spec(type="ets"))
    assert caught.value.hint == "pip install 'anomaly-times[nixtla]', or in a clone: uv sync --inexact --extra nixtla"


@pytest.mark.usefixtures("foreign")
def test_models_of_other_packages_are_found_and_checked() -> None:
    assert list_models()[-1] == Halves.info
    model = build_model(spec(type="halves", share=0.25), timezone="Asia/Tokyo")
    assert isinstance(model, Halves)
    assert (model.share, model.season, model.timezone) == (0.25, None, "Asia/Tokyo")
    with pytest.raises(ModelError, match="share must lie between 0 and 1"):
        build_model(spec(type="halves", share=2))
    with pytest.raises(ModelError, match="no parameter 'shares'"):
        build_model(spec(type="halves", shares=2))


@pytest.mark.usefixtures("foreign")
def test_a_broken_package_hides_no_other_model() -> None:
    broken = list_models()[-2]
    assert broken.name == "broken"
    assert broken.summary.startswith("does not load: No module named")
    with pytest.raises(ModelError, match="'broken' of a_package_that_is_gone:Model does not load"):
        build_model(spec(type="broken"))


@pytest.mark.usefixtures("foreign")
def test_another_package_cannot_replace_a_built_in_model() -> None:
    assert isinstance(build_model(spec(type="profile")), Profile)


def test_a_revision_names_weights_where_there_are_any_and_else_versions() -> None:
    assert current_revision(spec(type="seasonmix")) == SeasonMix().revision
    assert current_revision(spec(type="profile")) == f"anomaly-times {version('anomaly-times')}"
    assert current_revision(spec(type="ets", model="ANN")) == f"statsforecast {version('statsforecast')}"
    lgbm = f"mlforecast {version('mlforecast')}, lightgbm {version('lightgbm')}"
    assert current_revision(spec(type="lgbm")) == lgbm


def test_what_does_not_load_has_no_revision() -> None:
    assert current_revision(spec(type="profil")) == ""
    assert current_revision(spec(type="ets", modell="ANN")) == ""


@pytest.mark.usefixtures("foreign")
def test_a_model_of_another_package_says_its_revision_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Halves(season=None, timezone="UTC")
    assert revision_of("halves", model) == ""
    monkeypatch.setattr(Halves, "revision", "weights 7", raising=False)
    assert revision_of("halves", model) == "weights 7"


def test_a_model_of_another_package_has_the_version_of_that_package(monkeypatch: pytest.MonkeyPatch) -> None:
    [script] = [p for p in entry_points(group="console_scripts") if p.name == "pytest"]
    point = EntryPoint("installed-halves", f"{__name__}:Halves", registry.ENTRY_POINTS)
    vars(point).update(dist=script.dist)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    assert revision_of("installed-halves", Halves(season=None, timezone="UTC")) == f"pytest {version('pytest')}"
