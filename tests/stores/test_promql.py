from __future__ import annotations

from datetime import timedelta

import pytest

from anomaly_times.errors import QueryError
from anomaly_times.stores.promql import NoVectorError, Use, parse_query, point_at, server_position, server_reason


def test_selectors_are_found_wherever_they_stand() -> None:
    query = parse_query(
        'sum by (job) (rate(a{b=~"x|y",c!="z"}[5m] offset 1h)) / on (job) group_left max_over_time(sum(d)[1h:5m])'
        ' > topk(3, {__name__=~"e.*"} @ 1700000000) or -absent(f)'
    )
    assert query.selectors == ('a{b=~"x|y",c!="z"}', "d", '{__name__=~"e.*"}', "f")
    assert query.problem == ""


def test_a_selector_is_named_once_and_quotes_survive() -> None:
    query = parse_query('a{b="} offset 5m \\"q\\""} / a{b="} offset 5m \\"q\\""} offset 5m')
    assert query.selectors == ('a{b="} offset 5m \\"q\\""}',)


@pytest.mark.parametrize(
    "promql",
    [
        "default_rollup(up)",
        "sum(up) limit 5",
        "rate(up)",
        "WITH (x = up) x",
        "rate(up[1i])",
        "up keep_metric_names",
    ],
)
def test_metricsql_is_left_to_the_server(promql: str) -> None:
    query = parse_query(promql)
    assert query.selectors == ()
    assert query.problem


@pytest.mark.parametrize(
    ("promql", "marked"),
    [
        ("sum(up", "("),
        ("sum(up))", ")"),
        ("sum(up]", "]"),
        ('up{a="b}', '"b}'),
        ("rate(up[5x])", "5x"),
        ("foo(up)", "foo"),
        ("up{a='(['} + sum(", "("),
        ("up # (\n + (", "("),
    ],
)
def test_the_place_of_a_mistake_is_found(promql: str, marked: str) -> None:
    position = parse_query(promql).position
    assert position is not None
    assert promql[position:].startswith(marked)


@pytest.mark.parametrize(
    ("promql", "words"),
    [
        ("1", "a single number"),
        ("(1 + 2) * 3", "a single number"),
        ("-time()", "a single number"),
        ("scalar(up)", "a single number"),
        ("'up'", "a string"),
        ("up[5m]", "raw samples"),
        ("rate(up[5m])[1h:5m]", "raw samples"),
    ],
)
def test_what_never_answers_series_is_refused_with_a_way_out(promql: str, words: str) -> None:
    with pytest.raises(QueryError, match=words) as caught:
        parse_query(promql)
    assert caught.value.hint


@pytest.mark.parametrize("promql", ["vector(1)", "up + 1", "1 + up", "(up)", "sum(up) > bool 1"])
def test_vectors_pass(promql: str) -> None:
    assert parse_query(promql).problem == ""


@pytest.mark.parametrize("promql", ["", "  \n"])
def test_an_empty_query_is_refused(promql: str) -> None:
    with pytest.raises(QueryError, match="empty"):
        parse_query(promql)


def test_absurd_queries_are_refused_before_the_parser_sees_them() -> None:
    with pytest.raises(QueryError, match="20,000 are allowed"):
        parse_query("a" * 20_001)
    with pytest.raises(QueryError, match="nests more than 100"):
        parse_query("(" * 9_000 + "a" + ")" * 9_000)
    assert parse_query("(" * 100 + "a" + ")" * 100).selectors == ("a",)


@pytest.mark.parametrize("promql", ["-" * 9_999 + "a", "a" + "+a" * 9_999, "a" + "^a" * 9_999, "a" + " or a" * 3_999])
def test_long_chains_of_operators_are_left_to_the_server(promql: str) -> None:
    # The parser would end the process: it goes one level deeper for each operator.
    assert parse_query(promql).selectors == ()


def test_the_caret_stands_below_the_mistake() -> None:
    assert point_at("sum(\n  up +* b)", 10) == "    up +* b)\n       ^"
    line, caret = point_at("x" * 500 + "!" + "y" * 500, 500).split("\n")
    assert line[caret.index("^")] == "!"
    assert len(line) < 110


PROMETHEUS = [
    ("a\n  + *b", "2:5: parse error: unexpected <op:*>", "*b", "unexpected <op:*>"),
    (
        "a{b='é'} + +",
        'invalid parameter "query": 1:14: parse error: unexpected end of input',
        "",
        "unexpected end of input",
    ),
    ("sum(a", "1:6: parse error: unclosed left parenthesis", "", "unclosed left parenthesis"),
]
VICTORIA = [
    (
        "a\n  + *b",
        r'error when executing query="a\n  + *b" on the time range (start=1, end=2, step=3): cannot execute query: '
        r'singleExpr: unexpected token "*"; want "(", "{", "-", "+"; unparsed data: "*b"',
        "*b",
        'singleExpr: unexpected token "*"; want "(", "{", "-", "+"',
    ),
    (
        'a{b="c"} )',
        r'error when executing query="a{b=\"c\"} )" for (time=1, step=3): unparsed data left: ")"',
        ")",
        "it cannot be parsed to its end",
    ),
    (
        "foo(a)",
        'error when executing query="foo(a)" on the time range (start=1, end=2, step=3): cannot execute query: '
        'unknown func "foo"',
        "foo(a)",
        'unknown func "foo"',
    ),
]


@pytest.mark.parametrize(("promql", "words", "rest", "reason"), PROMETHEUS + VICTORIA)
def test_a_servers_words_give_place_and_reason(promql: str, words: str, rest: str, reason: str) -> None:
    position = server_position(promql, words)
    assert position is not None
    assert promql[position:] == rest
    assert server_reason(words) == reason


def test_each_use_of_a_selector_knows_its_window_and_what_is_around_it() -> None:
    query = parse_query('sum by (job) (rate(a{b="c",d=~"e|f"}[5m] offset 1h)) / max_over_time(irate(g[2m])[1h:5m]) + h')
    assert query.uses == (
        Use(
            'a{b="c",d=~"e|f"}',
            "a",
            (("b", 'b="c"'), ("d", 'd=~"e|f"')),
            timedelta(minutes=5),
            ("rate", "sum"),
        ),
        Use("g", "g", (), timedelta(minutes=2), ("irate", "max_over_time")),
        Use("h", "h"),
    )


def test_a_name_may_be_a_matcher_and_values_stay_quoted() -> None:
    (use,) = parse_query('{__name__="a", b="q\\"\\\\x"}').uses
    assert (use.metric, use.matchers) == ("a", (("b", 'b="q\\"\\\\x"'),))
    assert parse_query(f"a{{{use.matchers[0][1]}}}").problem == ""
    (either,) = parse_query('{a="b" or c="d"}').uses
    assert (either.metric, either.matchers) == ("", ())


@pytest.mark.parametrize(
    ("promql", "by"),
    [
        ("sum by (a, b) (x)", ("a", "b")),
        ("(topk by (a) (3, x))", ("a",)),
        ("sum without (a) (x)", ()),
        ("sum(x)", ()),
        ("sum by (a) (x) / y", ()),
    ],
)
def test_the_labels_of_the_outermost_aggregation(promql: str, by: tuple[str, ...]) -> None:
    assert parse_query(promql).by == by


@pytest.mark.parametrize(
    ("promql", "broken"), [("sum(x", True), ('x{a="}', True), ("x default 0", False), ("x", False)]
)
def test_what_no_server_can_take_is_told_apart_from_what_is_no_promql(promql: str, broken: bool) -> None:
    assert parse_query(promql).broken is broken


def test_what_answers_no_series_is_an_error_of_its_own() -> None:
    with pytest.raises(NoVectorError, match="a single number"):
        parse_query("1 + 1")
    with pytest.raises(QueryError) as caught:
        parse_query(" ")
    assert not isinstance(caught.value, NoVectorError)
