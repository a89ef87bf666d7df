"""YAML with line numbers, read so that a hostile or careless file cannot hurt.

The C parser gives events, which need no recursion, and the tree is built here: PyYAML's own composer crashes on deep
nesting, keeps the last of two equal keys, and turns `on` into true and `1:30` into 90. Limits stand before everything
else: size, depth, number of nodes, and what aliases may expand to. Scalars follow YAML 1.2's core schema: only
`true`, `false`, `null`, numbers; all else is text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

__all__ = ["Document", "YamlError", "dump_document", "dump_text", "read_documents"]

MAX_BYTES = 4_000_000
MAX_DEPTH = 32
MAX_NODES = 400_000

_INT = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_BREAKS = frozenset("\x85\u2028\u2029")
"""Line breaks of YAML 1.1 that PyYAML writes as they are."""
_SPECIAL: Mapping[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}

Path = tuple[str | int, ...]


class YamlError(Exception):
    """A file that is no YAML, or none that we take; `line` counts from 1."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.message, self.line = message, line


@dataclass(frozen=True)
class Document:
    """One document of a file: plain `data`, the line it begins at, and the line of every value by its path."""

    data: Any
    line: int
    lines: Mapping[Path, int] = field(default_factory=dict)

    def line_of(self, path: Path) -> int:
        """The line of the value at `path`, or of the nearest thing around it that has one."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, self.line)


@dataclass(slots=True)
class _Node:
    line: int
    value: Any  # a scalar, list[_Node] or dict[str, _Node]
    keys: dict[str, int] = field(default_factory=dict)  # the line of each key of a mapping
    size: int = 1
    depth: int = 0  # how many lists and mappings lie in each other, itself the first
    text: str = ""  # a scalar as it is written, less its quotes
    plain: bool = False  # a scalar without quotes


def read_documents(raw: bytes) -> list[Document]:
    """The documents of a YAML file.

    Raises:
        YamlError: bad UTF-8, NUL, too large, too deep, broken syntax, two equal keys, a tag, aliases that expand too
            far, or a key that is no text.
    """
    if len(raw) > MAX_BYTES:
        raise YamlError(f"the file has {len(raw):,} bytes; {MAX_BYTES:,} are the most", 1)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise YamlError("the file is not UTF-8", raw.count(b"\n", 0, exc.start) + 1) from exc
    if "\0" in text:
        raise YamlError("the file holds a NUL character", text.count("\n", 0, text.index("\0")) + 1)
    try:
        return [_document(node) for node in _trees(text)]
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        raise YamlError(f"no valid YAML: {exc.problem or exc}", mark.line + 1 if mark else 1) from exc
    except yaml.reader.ReaderError as exc:
        line = text.count("\n", 0, exc.position) + 1 if isinstance(exc.position, int) else 1
        raise YamlError(f"no valid YAML: {exc.reason}", line) from exc


def dump_document(data: Mapping[str, Any]) -> str:
    """A document from which `read_documents` gets `data` again: plain data, with text as keys."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def dump_text(text: str) -> str:
    """A scalar on one line that `read_documents` reads as `text`, with quotes where it needs them."""
    style = _style(text) if text.isprintable() else '"'
    node = yaml.ScalarNode("tag:yaml.org,2002:str", text, style=style)
    written: str = yaml.serialize(node, Dumper=_Dumper, allow_unicode=True, width=math.inf)
    return written.partition("\n")[0]


class _Dumper(yaml.SafeDumper):
    """Quotes what would be read as something else here: PyYAML knows the numbers of YAML 1.1, where `1e5` is text."""

    def _text(self, text: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=_style(text))


def _style(text: str) -> str | None:
    """The quotes that PyYAML must be told to set; `None` where it knows itself."""
    if _BREAKS & set(text):
        # Between single quotes these would be folded into spaces; between double quotes they are escaped.
        return '"'
    return None if isinstance(_scalar(text), str) else "'"


_Dumper.add_representer(str, _Dumper._text)


def _trees(text: str) -> Iterator[_Node]:
    """The root node of each document, built from events without recursion."""
    stack: list[_Node] = []
    pending: list[_Node | None] = []  # the key that waits for its value, per open mapping
    anchors: dict[str, _Node] = {}
    open_anchors: list[str | None] = []

    def place(node: _Node) -> _Node | None:
        """Put a finished node into its parent; the root comes back."""
        if not stack:
            return node
        parent = stack[-1]
        parent.size += node.size
        if parent.size > MAX_NODES:
            raise YamlError(f"the file expands to more than {MAX_NODES:,} values", node.line)
        # What an alias stands for was counted elsewhere: it is as deep as where it stands and what it holds.
        if len(stack) + node.depth > MAX_DEPTH:
            raise YamlError(f"nested more than {MAX_DEPTH} deep", node.line)
        parent.depth = max(parent.depth, 1 + node.depth)
        if isinstance(parent.value, list):
            parent.value.append(node)
            return None
        key = pending[-1]
        if key is None:
            if isinstance(node.value, (list, dict)):
                raise YamlError("a key must be text", node.line)
            if (first := parent.keys.get(node.text)) is not None:
                raise YamlError(f"the key {node.text!r} stands twice, first in line {first}", node.line)
            parent.keys[node.text] = node.line
            pending[-1] = node
            return None
        pending[-1] = None
        if key.plain and key.text == "<<":
            _merge(parent, node)
        else:
            parent.value[key.text] = replace(node, line=key.line)
        return None

    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 1
        root: _Node | None = None
        if isinstance(event, yaml.DocumentStartEvent):
            anchors.clear()
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in anchors:
                raise YamlError(f"the alias *{event.anchor} stands before its anchor, or inside it", line)
            known = anchors[event.anchor]
            root = place(replace(known, line=line))
        elif isinstance(event, yaml.ScalarEvent):
            _refuse_tag(event, line)
            plain = event.implicit[0]
            value = _scalar(event.value) if plain else event.value
            node = _Node(line, value, text=event.value, plain=plain)
            if event.anchor:
                anchors[event.anchor] = node
            root = place(node)
        elif isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
            _refuse_tag(event, line)
            if len(stack) >= MAX_DEPTH:
                raise YamlError(f"nested more than {MAX_DEPTH} deep", line)
            mapping = isinstance(event, yaml.MappingStartEvent)
            stack.append(_Node(line, {} if mapping else [], depth=1))
            pending.append(None)
            open_anchors.append(event.anchor)
        elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            node = stack.pop()
            pending.pop()
            if anchor := open_anchors.pop():
                anchors[anchor] = node
            root = place(node)
        if root is not None:
            yield root


def _refuse_tag(event: yaml.NodeEvent, line: int) -> None:
    tag = getattr(event, "tag", None)
    if tag is not None:
        raise YamlError(f"the tag {tag[:64]!r} is not taken: plain values are enough", line)


def _merge(parent: _Node, node: _Node) -> None:
    """`<<: *defaults`: keys that the mapping lacks."""
    sources = node.value if isinstance(node.value, list) else [node]
    for source in sources:
        if not isinstance(source.value, dict):
            raise YamlError("`<<` takes a mapping", node.line)
        for key, value in source.value.items():
            parent.value.setdefault(key, value)


def _scalar(text: str) -> Any:
    if text in _SPECIAL:
        return _SPECIAL[text]
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def _document(root: _Node) -> Document:
    lines: dict[Path, int] = {}

    def plain(node: _Node, path: Path) -> Any:
        lines[path] = node.line
        if isinstance(node.value, dict):
            return {key: plain(value, (*path, key)) for key, value in node.value.items()}
        if isinstance(node.value, list):
            return [plain(value, (*path, i)) for i, value in enumerate(node.value)]
        return node.value

    return Document(plain(root, ()), root.line, lines)
