"""Every model that can be named keeps the contract."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from anomaly_times.mission import ModelSpec
from anomaly_times.models import Forecaster, build_model, list_models
from anomaly_times.panel import Panel, Quantiles
from anomaly_times.testing import CONTRACT, a_row_alone_is_as_in_a_panel, model_contract

PROMISES = [
    pytest.param(info.name, case, id=f"{info.name}-{case.__name__}")
    for info in list_models()
    for case in CONTRACT
    # Chronos needs weights: test_chronos.py makes some.
    if info.extra != "chronos" and not (info.pooled and case is a_row_alone_is_as_in_a_panel)
]


@pytest.mark.parametrize(("name", "case"), PROMISES)
def test_every_model_keeps_the_contract(name: str, case: Callable[[Forecaster], None]) -> None:
    case(build_model(ModelSpec(type=name)))


class LastDay:
    """Repeats the last 24 values that are there, as a model that knows no times does; may look at other rows too."""

    def __init__(self, *, pooled: bool = False) -> None:
        self.pooled = pooled

    def forecast(self, history: Panel, *, h: int, quantiles: Sequence[float]) -> Quantiles:
        values = np.full((history.n_series, h, len(quantiles)), np.nan)
        for i, row in enumerate(history.y):
            known = row[np.isfinite(row)]
            if known.size:
                values[i] = np.resize(known[: known.size // 24 * 24][-24:] if known.size >= 24 else known, h)[:, None]
        if self.pooled:
            values += 0.01 * history.n_series
        return Quantiles(history.labels, history.grid.following(h), tuple(quantiles), values)


def test_the_contract_catches_a_model_that_shifts_phases() -> None:
    with pytest.raises(AssertionError, match="must not shift the season"):
        model_contract(LastDay)


def test_the_contract_catches_a_row_that_depends_on_others() -> None:
    with pytest.raises(AssertionError):
        CONTRACT[-1](LastDay(pooled=True))
    CONTRACT[-1](LastDay())


def test_a_model_that_keeps_the_contract_passes() -> None:
    model_contract(lambda: build_model(ModelSpec(type="seasonal_naive")))
    model_contract(lambda: build_model(ModelSpec(type="seasonal_naive")), rows_independent=False)
