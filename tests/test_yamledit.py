from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomaly_times.yamledit import remove_value, set_value
from anomaly_times.yamlfile import Path, YamlError, dump_document, read_documents

T = "2026-11-23T10:00:00Z"
PATH: Path = ("forecast", "rebase")

# Before, the path of the mission, and after: what is set in the first is what is removed from the second.
PAIRS: dict[str, tuple[str, Path, str]] = {
    "a mapping in braces": (
        "# ours\nname: ä  # why\nforecast: {every: 1h, level: 99}  # narrow\nstep: 5m\n",
        (),
        f"# ours\nname: ä  # why\nforecast: {{every: 1h, level: 99, rebase: {T}}}  # narrow\nstep: 5m\n",
    ),
    "a mapping of lines": (
        "forecast:\n    every: 1h  # often\n    # the shop sleeps\n    level: 99   # narrow\n\n"
        "# what counts\ndetect: {}\n",
        (),
        "forecast:\n    every: 1h  # often\n    # the shop sleeps\n    level: 99   # narrow\n"
        f"    rebase: {T}\n\n# what counts\ndetect: {{}}\n",
    ),
    "none there": ("name: a\npromql: up\n", (), f"name: a\npromql: up\nforecast: {{rebase: {T}}}\n"),
    "a block of text at the end": (
        "name: a\npromql: |\n  sum(\n    up\n  )\n\n---\nname: b\n",
        (),
        f"name: a\npromql: |\n  sum(\n    up\n  )\nforecast: {{rebase: {T}}}\n\n---\nname: b\n",
    ),
    "a list at the end": (
        "name: a\nsilence:\n- code: x  # known\n",
        (),
        f"name: a\nsilence:\n- code: x  # known\nforecast: {{rebase: {T}}}\n",
    ),
    "one of several": (
        "defaults: {step: 5m}\nmissions:\n  - name: a\n    promql: up  # all\n\n"
        "  # the other\n  - {name: b, promql: up}\n",
        ("missions", 0),
        "defaults: {step: 5m}\nmissions:\n  - name: a\n    promql: up  # all\n"
        f"    forecast: {{rebase: {T}}}\n\n  # the other\n  - {{name: b, promql: up}}\n",
    ),
    "one of several in braces": (
        "missions: [{name: a}, {name: b,\n  promql: up}]\n",
        ("missions", 1),
        f"missions: [{{name: a}}, {{name: b,\n  promql: up, forecast: {{rebase: {T}}}}}]\n",
    ),
    "an alias at the end": (
        "name: a\nlabels: &l {x: y}\nalert:\n  labels: *l  # both\n",
        (),
        f"name: a\nlabels: &l {{x: y}}\nalert:\n  labels: *l  # both\nforecast: {{rebase: {T}}}\n",
    ),
    "lines of Windows": ("name: a\r\nstep: 1m\r\n", (), f"name: a\r\nstep: 1m\r\nforecast: {{rebase: {T}}}\r\n"),
    "a byte order mark": ("\ufeffname: a\n", (), f"\ufeffname: a\nforecast: {{rebase: {T}}}\n"),
    "a merge of something else": (
        "name: a\n<<: {step: 5m}\n",
        (),
        f"name: a\n<<: {{step: 5m}}\nforecast: {{rebase: {T}}}\n",
    ),
}


@pytest.mark.parametrize("case", PAIRS)
def test_a_value_is_set_and_removed_and_nothing_else_changes(case: str) -> None:
    before, where, after = PAIRS[case]
    assert set_value(before.encode(), 0, (*where, *PATH), T).decode() == after
    assert remove_value(after.encode(), 0, (*where, *PATH)).decode() == before


def test_a_file_without_a_last_line_break_gets_one() -> None:
    assert set_value(b"name: a", 0, PATH, T).decode() == f"name: a\nforecast: {{rebase: {T}}}\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("forecast: {rebase: 2025-01-01T00:00Z, every: 1h}\n", f"forecast: {{rebase: {T}, every: 1h}}\n"),
        (
            "forecast:\n  rebase: '2025-01-01T00:00Z' # v2\n  every: 1h\n",
            f"forecast:\n  rebase: {T} # v2\n  every: 1h\n",
        ),
    ],
)
def test_a_value_that_is_there_is_replaced_where_it_stands(before: str, after: str) -> None:
    assert set_value(before.encode(), 0, PATH, T).decode() == after


def test_the_document_is_counted() -> None:
    raw = b"name: a\n---\nname: b\n---\nname: c\n"
    assert set_value(raw, 1, ("step",), "5m") == b"name: a\n---\nname: b\nstep: 5m\n---\nname: c\n"


def test_the_first_of_a_list_entrys_fields_makes_room_for_the_next() -> None:
    raw = b"missions:\n- step: 5m\n  # which\n  name: a\n- name: b\n"
    assert remove_value(raw, 0, ("missions", 0, "step")) == b"missions:\n- name: a\n- name: b\n"


def test_a_value_at_the_front_of_braces_is_removed_with_its_comma() -> None:
    assert remove_value(b"forecast: {rebase: x, every: 1h}\n", 0, PATH) == b"forecast: {every: 1h}\n"


@pytest.mark.parametrize(
    "text",
    [
        "base: &b {every: 1h}\nforecast: *b\n",
        "base: &b {forecast: {every: 1h}}\n<<: *b\n",
        "forecast: &f {every: 1h}\nother: *f\n",
    ],
)
def test_what_is_shared_is_not_touched(text: str) -> None:
    with pytest.raises(YamlError, match="without changing more"):
        set_value(text.encode(), 0, PATH, T)


def test_what_is_merged_from_elsewhere_cannot_be_removed_here() -> None:
    with pytest.raises(YamlError):
        remove_value(b"base: &b {forecast: {every: 1h, rebase: x}}\n<<: *b\n", 0, PATH)


def test_what_is_no_mapping_takes_no_value() -> None:
    with pytest.raises(YamlError, match="no mapping") as caught:
        set_value(b"name: a\nforecast: [1]\n", 0, PATH, T)
    assert caught.value.line == 2


KEYS = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), min_size=1, max_size=6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(KEYS.filter(lambda key: key not in ("<<", "forecast")), VALUES, min_size=1, max_size=4))
def test_whatever_a_file_holds_a_value_comes_and_goes_and_leaves_it_as_it_was(data: dict[str, object]) -> None:
    text = dump_document(data)
    added = set_value(text.encode(), 0, PATH, T)
    assert read_documents(added)[0].data == {**data, "forecast": {"rebase": T}}
    assert set(added.decode().split("\n")) - set(text.split("\n")) <= {f"forecast: {{rebase: {T}}}"}
    assert read_documents(remove_value(added, 0, PATH))[0].data == data
