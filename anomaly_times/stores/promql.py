"""What can be said about a query before and after a server has seen it.

VictoriaMetrics' MetricsQL goes further than PromQL, so a query that does not parse here may still be right: the server
decides. What parses tells us its selectors, and whether it can answer series at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import promql_parser

from anomaly_times.errors import QueryError

__all__ = ["Query", "parse_query", "point_at", "server_position", "server_reason"]

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


@dataclass(frozen=True, slots=True)
class Query:
    """A query as far as it is understood: `selectors` are the series selectors in it, without offsets.

    `problem` says why it is no PromQL (it may be MetricsQL), `position` where, as an index into the text; `None` if
    unknown.
    """

    text: str
    selectors: tuple[str, ...] = ()
    problem: str = ""
    position: int | None = None


def parse_query(promql: str) -> Query:
    """What `promql` says; text that is no PromQL is no error here.

    Raises:
        QueryError: empty, absurdly long or deeply nested, or PromQL that can never answer series: a scalar, a string,
            a range.
    """
    if not promql.strip():
        raise QueryError("the query is empty")
    if len(promql) > _LONGEST:
        raise QueryError(f"the query has {len(promql):,} characters; {_LONGEST:,} are allowed")
    position, problem, operators = _scan(promql)
    if operators > _MOST_OPERATORS:
        return Query(promql, problem=problem, position=position)
    try:
        tree = promql_parser.parse(promql)
    except ValueError as exc:
        words = str(exc).replace("invalid promql query", "it breaks the grammar")
        return Query(promql, problem=problem or words, position=position if problem else _quoted(promql, words))
    kind = _kind(tree)
    if kind in _NO_SERIES:
        raise QueryError(f"the query answers {_NO_SERIES[kind]}, no series: {_shortened(promql)}", hint=_INSTEAD[kind])
    found = (_without_time(node.prettify()) for node in _nodes(tree) if isinstance(node, promql_parser.VectorSelector))
    return Query(promql, tuple(dict.fromkeys(found)))


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


def _nodes(tree: object) -> Iterator[object]:
    """Every node of the tree, left to right. The parser's own `walk` takes cubic time."""
    stack = [tree]
    while stack:
        node = stack.pop()
        yield node
        if isinstance(node, promql_parser.BinaryExpr):
            stack += [node.rhs, node.lhs]
        elif isinstance(node, promql_parser.Call):
            stack += reversed(node.args)
        elif isinstance(node, promql_parser.AggregateExpr):
            stack += [part for part in (node.param, node.expr) if part is not None]
        elif isinstance(node, promql_parser.MatrixSelector):
            stack.append(node.vector_selector)
        elif isinstance(node, (promql_parser.ParenExpr, promql_parser.UnaryExpr, promql_parser.SubqueryExpr)):
            stack.append(node.expr)


def _without_time(selector: str) -> str:
    """`selector` less `offset` and `@`, which stand behind its braces."""
    return selector[: selector.rfind("}") + 1] or selector.split()[0]


def _shortened(text: str, width: int = 120) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"
