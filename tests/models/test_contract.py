"""Every model that can be named keeps the contract."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from anomaly_times.mission import ModelSpec
from anomaly_times.models import Forecaster, build_model, list_models
from anomaly_times.testing import CONTRACT


@pytest.mark.parametrize("case", CONTRACT, ids=lambda case: case.__name__)
@pytest.mark.parametrize("name", [info.name for info in list_models()])
def test_every_model_keeps_the_contract(name: str, case: Callable[[Forecaster], None]) -> None:
    case(build_model(ModelSpec(type=name)))
