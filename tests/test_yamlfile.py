from __future__ import annotations

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from anomaly_times.yamlfile import MAX_BYTES, YamlError, dump_document, dump_text, read_documents


def test_every_value_has_its_line() -> None:
    first, second = read_documents(b"a: 1\nb:\n  - x\n  - y: 2\n---\nc: 3\n")
    assert first.data == {"a": 1, "b": ["x", {"y": 2}]}
    assert [first.line_of(path) for path in [("a",), ("b", 0), ("b", 1, "y"), ("b", 1, "z"), ("q",)]] == [1, 3, 4, 4, 1]
    assert (second.data, second.line) == ({"c": 3}, 6)


def test_scalars_are_what_they_look_like() -> None:
    (document,) = read_documents(
        b"[on, yes, 1:30, 0777, 5m, 2026-01-01, true, null, ~, 1, -2.5, 1e3, .inf, '1', \"true\", 20%, 0x10]"
    )
    assert document.data == [
        *("on", "yes", "1:30", 777, "5m", "2026-01-01", True, None, None, 1, -2.5, 1000.0, math.inf),
        *("1", "true", "20%", "0x10"),
    ]


def test_aliases_and_merges_work_and_own_keys_win() -> None:
    (document,) = read_documents(b"base: &b {x: 1, y: 2}\none: {<<: *b, y: 3}\ntwo: {y: 4, <<: *b}\nthree: *b\n")
    assert document.data["one"] == {"x": 1, "y": 3}
    assert document.data["two"] == {"y": 4, "x": 1}
    assert document.data["three"] == {"x": 1, "y": 2}


BOMB = b"a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"a%d: &a%d [%s]\n" % (i, i, b",".join([b"*a%d" % (i - 1)] * 10)) for i in range(1, 9)
)
CHAIN = b"a0: &a0 [x]\n" + b"".join(b"a%d: &a%d [*a%d]\n" % (i, i, i - 1) for i in range(1, 700))


@pytest.mark.parametrize(
    ("raw", "line", "words"),
    [
        (CHAIN, 32, "deep"),
        (CHAIN.replace(b"[", b"{k: ").replace(b"]", b"}"), 32, "deep"),
        (b"[" * 200_000, 1, "deep"),
        (b"- " * 5_000, 1, "deep"),
        (b"x: 1\na: 1\nb: 2\na: 3\n", 4, "'a' stands twice, first in line 2"),
        (b"\na: !!python/object/apply:os.system [id]\n", 2, "tag"),
        (b"a: !custom x", 1, "tag"),
        (BOMB, 6, "expands"),
        (b"a: 1\nb: \0\n", 2, "NUL"),
        (b"a: 1\nb: \xff\n", 2, "UTF-8"),
        (b"a: 1\nb: [1,\n", 3, "no valid YAML"),
        (b"a: 1\n\tb: 2\n", 2, "no valid YAML"),
        (b"a: 1\nb: \x07", 2, "control characters"),
        (b"a: *nowhere", 1, "alias"),
        (b"a: &a [*a]", 1, "alias"),
        (b"? [1]\n: 2", 1, "key must be text"),
        (b"a:\n  <<: 1", 2, "takes a mapping"),
        (b"#" * (MAX_BYTES + 1), 1, "bytes"),
        (b"- a\n" * 500_000, 400_000, "more than 400,000"),
    ],
    ids=lambda value: value[:20] if isinstance(value, bytes) else None,
)
def test_what_could_hurt_or_mislead_is_refused_with_its_line(raw: bytes, line: int, words: str) -> None:
    with pytest.raises(YamlError) as caught:
        read_documents(raw)
    assert words in caught.value.message
    assert caught.value.line == line


def test_nesting_is_taken_up_to_its_limit_with_aliases_or_without() -> None:
    plain = read_documents(b"a30: " + b"[" * 31 + b"x" + b"]" * 31)[0].data
    aliased = read_documents(CHAIN[: CHAIN.index(b"a31")])[0].data
    assert str(aliased["a30"]) == str(plain["a30"]) == "[" * 31 + "'x'" + "]" * 31


def test_an_empty_file_has_no_documents() -> None:
    assert read_documents(b"") == []
    assert read_documents(b"# only a comment\n") == []


json_like = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.text(st.characters(codec="utf-8", categories=["L", "N"])),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(json_like)
def test_what_was_dumped_is_read_back(value: object) -> None:
    # The dumper quotes by YAML 1.1's rules, a superset of what needs quotes here.
    raw = yaml.safe_dump({"v": value}, allow_unicode=True).encode()
    assert read_documents(raw)[0].data == {"v": value}


@given(st.binary(max_size=60))
def test_no_bytes_crash_it(raw: bytes) -> None:
    try:
        read_documents(raw)
    except YamlError as error:
        line = error.line
    else:
        line = 1
    assert line >= 1


_TEXT = st.text(st.characters(exclude_categories=["Cs"])) | st.from_regex(
    r"[-+0-9._eE:x~]{1,12}|null|True|no|<<|\.inf|\.NaN", fullmatch=True
)
_SCALARS = st.none() | st.booleans() | st.integers(-(10**18) + 1, 10**18 - 1) | st.floats(allow_nan=False) | _TEXT
_DATA = st.dictionaries(
    _TEXT,
    st.recursive(
        _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3), max_leaves=8
    ),
    max_size=4,
)


@given(_TEXT)
def test_a_text_is_dumped_as_one_line_that_reads_as_it(text: str) -> None:
    line = dump_text(text)
    assert "\n" not in line
    # Below other fields, as in a file that is written by hand.
    assert read_documents(f"a:\n  - b: {line}\n    c: 1\n".encode())[0].data == {"a": [{"b": text, "c": 1}]}


@given(_DATA)
def test_what_is_dumped_is_read_again_as_it_was(data: dict[str, object]) -> None:
    (document,) = read_documents(dump_document(data).encode())
    assert document.data == data
    assert [type(value) for value in document.data.values()] == [type(value) for value in data.values()]
