from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomaly_times.conventions import lead_ms, name_for_query, source_labels, written_labels
from anomaly_times.panel import Labels


def test_results_carry_the_source_labels_the_mission_and_the_metric() -> None:
    source = Labels.of({"__name__": "cpu", "host": "a"})
    assert str(written_labels(source, "load")) == '{host="a",metric="cpu",mission="load"}'


def test_labels_that_are_ours_are_kept_as_exported() -> None:
    source = Labels.of({"metric": "x", "mission": "y"})
    assert str(written_labels(source, "m")) == '{exported_metric="x",exported_mission="y",mission="m"}'


def test_a_missions_label_never_replaces_one_of_the_series() -> None:
    written = written_labels(Labels.of({"team": "a"}), "m", {"team": "b", "tier": "1"})
    assert (written.get("team"), written.get("tier")) == ("a", "1")


@given(
    st.dictionaries(
        st.sampled_from(["__name__", "metric", "mission", "host", "team"]), st.sampled_from(["a", "b", "c"])
    ),
    st.dictionaries(st.sampled_from(["team", "tier"]), st.sampled_from(["a", "b"])),
)
def test_a_vanished_series_is_named_so_that_its_results_keep_their_labels(
    source: dict[str, str], extra: dict[str, str]
) -> None:
    written = written_labels(Labels.of(source), "m", extra)
    assert written_labels(source_labels(written, extra), "m", extra) == written
    if not set(extra) & set(source):
        assert source_labels(written, extra) == Labels.of(source)


def test_a_query_without_a_name_gets_the_same_one_whatever_its_layout() -> None:
    name = name_for_query("prod", "sum(rate(x[5m]))  by (a)")
    assert name == name_for_query("prod", " sum(rate(x[5m]))\n by (a) ")
    assert name == name_for_query("prod", "sum( rate(x [5m]) )by(a)")
    assert name != name_for_query("dev", "sum(rate(x[5m])) by (a)")
    assert name_for_query("prod", "a unless b") != name_for_query("prod", "aunless b")
    assert name.startswith("q-")
    assert len(name) == 12


def test_white_space_inside_a_string_is_meaning() -> None:
    assert name_for_query("s", 'x{a="1  2"}') != name_for_query("s", 'x{a="1 2"}')


def test_a_lead_must_fit_into_its_step() -> None:
    assert lead_ms(3, timedelta(minutes=1)) == 3
    assert lead_ms(998, timedelta(seconds=1)) == 998
    for k in (0, 999):
        with pytest.raises(ValueError, match="does not fit"):
            lead_ms(k, timedelta(seconds=1))
