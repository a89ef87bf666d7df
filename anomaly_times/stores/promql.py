"""What can be said about a query before and after a server has seen it.

VictoriaMetrics' MetricsQL goes further than PromQL, so a query that does not parse here may still be right: the server
decides. What parses tells us its selectors, and whether it can answer series at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import promql_parser

from anomaly_times.errors import QueryError

__all__ = [
    "NoVectorError",
    "Query",
    "TooManySeriesError",
    "Use",
    "parse_query",
    "point_at",
    "server_position",
    "server_reason",
]

_LONGEST = 20_000
_DEEPEST = 100
# The parser and its tree use the stack for every level, and `a + a + …` is one level an operator: 500 of them end a
# thread that has half a megabyte. Real queries have a handful.
_MOST_OPERATORS = 200
_SHOWN_WIDTH = 100

_TOKEN = re.compile(
    r"""(?P<string>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|`[^`]*`)|(?P<open_string>["'`])|(?P<comment>\#[^\n]*)"""
    r"""|(?P<open>[(\[{])|(?P<close>[)\]}])|(?P<operator>[-+*/%^]|[=!]=|[<>]=?|\b(?:and|or|unless|atan2)\b)""",
    re.DOTALL | re.IGNORECASE,
)
_PAIRS = {")": "(", "]": "[", "}": "{"}
_NO_SERIES = {"scalar": "a single number", "string": "a string", "matrix": "raw samples of a range"}
_INSTEAD = {
    "scalar": "wrap it in vector(…) if one constant series is wanted",
    "string": "a query begins with a metric name, a selector in braces, or a function",
    "matrix": "wrap it in a function: rate(…[5m]), avg_over_time(…[5m])",
}


class NoVectorError(QueryError):
    """PromQL that parses and can never answer series: a scalar, a string, a range."""


class TooManySeriesError(QueryError):
    """A query that answers more series than are allowed."""


@dataclass(frozen=True, slots=True)
class Use:
    """One place where a query reads series.

    `metric` is empty where the selector spells no name, `matchers` are its label matchers as written (`job="api"`),
    `window` is that of a range selector, and `around` are the functions and aggregations around it, innermost first.
    """

    selector: str
    metric: str
    matchers: tuple[tuple[str, str], ...] = ()
    window: timedelta | None = None
    around: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Query:
    """A query as far as it is understood.

    `uses` are the places where it reads series; `by` are the labels of its outermost aggregation, if it has one with
    `by`. `problem` says why it is no PromQL (it may be MetricsQL), `position` where, as an index into the text (`None`
    if unknown); `broken` means that brackets or quotes do not match, so that no server can take it.
    """

    text: str
    uses: tuple[Use, ...] = ()
    by: tuple[str, ...] = ()
    problem: str = ""
    position: int | None = None
    broken: bool = False

    @property
    def selectors(self) -> tuple[str, ...]:
        """The different series selectors, without offsets."""
        return tuple(dict.fromkeys(use.selector for use in self.uses))


def parse_query(promql: str) -> Query:
    """What `promql` says; text that is no PromQL is no error here.

    Raises:
        NoVectorError: PromQL that can never answer series: a scalar, a string, a range.
        QueryError: empty, absurdly long or deeply nested.
    """
    if not promql.strip():
        raise QueryError("the query is empty")
    if len(promql) > _LONGEST:
        raise QueryError(f"the query has {len(promql):,} characters; {_LONGEST:,} are allowed")
    position, problem, operators = _scan(promql)
    if operators > _MOST_OPERATORS:
        return Query(promql, problem=problem, position=position, broken=bool(problem))
    try:
        tree = promql_parser.parse(promql)
    except ValueError as exc:
        words = str(exc).replace("invalid promql query", "it breaks the grammar")
        if not problem:
            position = _quoted(promql, words)
        return Query(promql, problem=problem or words, position=position, broken=bool(problem))
    kind = _kind(tree)
    if kind in _NO_SERIES:
        message = f"the query answers {_NO_SERIES[kind]}, no series: {_shortened(promql)}"
        raise NoVectorError(message, hint=_INSTEAD[kind])
    return Query(promql, tuple(_uses(tree)), by=_grouped_by(tree))


def point_at(promql: str, position: int) -> str:
    """The line of `promql` around `position`, and below it a caret."""
    position = min(max(position, 0), len(promql))
    first = promql.rfind("\n", 0, position) + 1
    line, column = promql[first:].partition("\n")[0].replace("\t", " "), position - first
    if len(line) > _SHOWN_WIDTH:
        begin = min(max(0, column - _SHOWN_WIDTH // 2), len(line) - _SHOWN_WIDTH)
        cut = line[begin : begin + _SHOWN_WIDTH]
        line, column = ("…" if begin else "") + cut, column - begin + bool(begin)
    return f"  {line}\n  {' ' * column}^"


def server_reason(words: str) -> str:
    """The reason in a server's words, less the query and the frame that servers put around both."""
    words = re.sub(r'^error when executing query="(?:\\.|[^"\\])*".*?\): ', "", words, flags=re.DOTALL)
    words = re.sub(
        r'^(?:invalid parameter "query": |cannot execute query: |cannot expand WITH expressions: )+', "", words
    )
    words = re.sub(r"^\d+:\d+: parse error: ", "", words)
    words = re.sub(r';? ?unparsed data(?: left)?: "(?:\\.|[^"\\])*"$', "", words) or "it cannot be parsed to its end"
    return _shortened(words, 300)


def server_position(promql: str, words: str) -> int | None:
    """Where in `promql` the server sees the problem, from its words; `None` if it does not say.

    Prometheus names line and column (in bytes), VictoriaMetrics the rest that it could not parse.
    """
    if match := re.search(r"\b(\d+):(\d+): parse error", words):
        lines = promql.split("\n")
        row, column = int(match[1]) - 1, int(match[2]) - 1
        if row < len(lines):
            before = lines[row].encode()[:column].decode(errors="ignore")
            return sum(len(line) + 1 for line in lines[:row]) + len(before)
    if match := re.search(r'unparsed data(?: left)?: "((?:\\.|[^"\\])*)"$', words):
        # Go's quoting adds a backslash before quotes and backslashes, and spells control characters.
        rest = re.sub(r"\\(.)", lambda m: {"n": "\n", "t": "\t", "r": "\r"}.get(m[1], m[1]), match[1])
        if promql.endswith(rest):
            return len(promql) - len(rest)
    return _quoted(promql, words)


def _scan(promql: str) -> tuple[int | None, str, int]:
    """Position and words of the first unbalanced bracket or quote, and how many operators there are."""
    opened: list[tuple[str, int]] = []
    operators = 0
    for token in _TOKEN.finditer(promql):
        kind, text, at = token.lastgroup, token[0], token.start()
        if kind == "operator":
            operators += 1
        elif kind == "open":
            opened.append((text, at))
            if len(opened) > _DEEPEST:
                raise QueryError(f"the query nests more than {_DEEPEST} brackets:\n{point_at(promql, at)}")
        elif kind == "close":
            if not opened or opened[-1][0] != _PAIRS[text]:
                return at, f"unexpected {text!r}", operators
            opened.pop()
        elif kind == "open_string":
            return at, f"the string that begins with {text} has no end", operators
    return (opened[-1][1], f"{opened[-1][0]!r} is not closed", operators) if opened else (None, "", operators)


def _quoted(promql: str, words: str) -> int | None:
    """Where the first thing that `words` quotes, or ends with, stands in the query."""
    quoted = re.findall(r"""(["'`])((?:\\.|(?!\1).)+)\1""", words)
    for text in [text for _, text in quoted] + re.findall(r": (\S+)$", words):
        at = promql.find(text)
        if at >= 0:
            return at
    return None


def _kind(node: object) -> str:
    """`vector`, `matrix`, `scalar` or `string`: what this PromQL answers."""
    if isinstance(node, (promql_parser.ParenExpr, promql_parser.UnaryExpr)):
        return _kind(node.expr)
    if isinstance(node, promql_parser.NumberLiteral):
        return "scalar"
    if isinstance(node, promql_parser.StringLiteral):
        return "string"
    if isinstance(node, (promql_parser.MatrixSelector, promql_parser.SubqueryExpr)):
        return "matrix"
    if isinstance(node, promql_parser.BinaryExpr):
        return "scalar" if _kind(node.lhs) == _kind(node.rhs) == "scalar" else "vector"
    if isinstance(node, promql_parser.Call):
        return str(node.func.return_type).rpartition(".")[2].lower()
    return "vector"


def _uses(tree: object) -> Iterator[Use]:
    """Every use of a selector, left to right. The parser's own `walk` takes cubic time."""
    stack: list[tuple[object, tuple[str, ...], timedelta | None]] = [(tree, (), None)]
    while stack:
        node, around, window = stack.pop()
        if isinstance(node, promql_parser.VectorSelector):
            yield _use(node, around, window)
        elif isinstance(node, promql_parser.BinaryExpr):
            stack += [(node.rhs, around, None), (node.lhs, around, None)]
        elif isinstance(node, promql_parser.Call):
            stack += [(each, (node.func.name, *around), None) for each in reversed(node.args)]
        elif isinstance(node, promql_parser.AggregateExpr):
            around = (str(node.op), *around)
            stack += [(part, around, None) for part in (node.param, node.expr) if part is not None]
        elif isinstance(node, promql_parser.MatrixSelector):
            stack.append((node.vector_selector, around, node.range))
        elif isinstance(node, (promql_parser.ParenExpr, promql_parser.UnaryExpr, promql_parser.SubqueryExpr)):
            stack.append((node.expr, around, None))


def _use(node: promql_parser.VectorSelector, around: tuple[str, ...], window: timedelta | None) -> Use:
    groups = node.matchers.or_matchers or [node.matchers.matchers]
    each = [matcher for group in groups for matcher in group]
    named = (m.value for m in each if m.name == "__name__" and m.op == promql_parser.MatchOp.Equal)
    # Alternatives (`a="x" or b="y"` of VictoriaMetrics) cannot be told apart matcher by matcher.
    plain = [(m.name, _OPERATORS[str(m.op)] + _quote(m.value)) for m in each if m.name != "__name__"]
    return Use(
        _without_time(node.prettify()),
        node.name or next(named, ""),
        tuple((name, name + rest) for name, rest in plain) if len(groups) == 1 else (),
        window,
        around,
    )


_OPERATORS = {"MatchOp.Equal": "=", "MatchOp.NotEqual": "!=", "MatchOp.Re": "=~", "MatchOp.NotRe": "!~"}


def _quote(value: str) -> str:
    escaped = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'"{escaped}"'


def _grouped_by(tree: object) -> tuple[str, ...]:
    while isinstance(tree, promql_parser.ParenExpr):
        tree = tree.expr
    if isinstance(tree, promql_parser.AggregateExpr) and tree.modifier is not None:
        modifier = tree.modifier
        if modifier.type == promql_parser.AggModifierType.By:
            return tuple(modifier.labels)
    return ()


def _without_time(selector: str) -> str:
    """`selector` less `offset` and `@`, which stand behind its braces."""
    return selector[: selector.rfind("}") + 1] or selector.split()[0]


def _shortened(text: str, width: int = 120) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"
