"""One value of a YAML file changed in place: comments, order and style of all else stay, byte by byte.

The place is found in the tree that PyYAML composes, whose nodes know where they begin and end. What comes out is read
again before anybody gets it: where it does not say exactly what was wanted (an alias stands there, or a mapping that
others share), the file is refused rather than guessed at.
"""

from __future__ import annotations

import codecs
import copy
from collections.abc import Sequence
from typing import Any

import yaml

from anomaly_times.yamlfile import Document, Path, YamlError, read_documents

__all__ = ["remove_value", "set_value"]

_Entry = tuple[yaml.Node, yaml.Node]


def set_value(raw: bytes, document: int, path: Path, text: str) -> bytes:
    """The file with the scalar `text` at `path` of its `document`-th document; mappings on the way are made.

    Args:
        raw: a file that `read_documents` takes.
        document: counts from 0.
        path: keys and positions; the last one is a key.
        text: as it is to stand in the file, on one line.

    Raises:
        YamlError: the value cannot be set without another change to what the file says.
    """
    wanted, body = _read(raw)
    holder: Any = wanted[document].data
    for key in path[:-1]:
        holder = holder.setdefault(key, {}) if isinstance(holder, dict) else holder[key]
    if not isinstance(holder, dict):
        raise YamlError(f"what stands here is no mapping, so it takes no {path[-1]!r}", wanted[document].line_of(path))
    [value] = read_documents(text.encode())
    holder[path[-1]] = value.data

    node, line = _root(body, document), 1
    for depth, key in enumerate(path):
        line = node.start_mark.line + 1
        entry = _entry(node, key)
        if entry is None:
            made = "".join(f"{{{part}: " for part in path[depth + 1 :]) + text + "}" * (len(path) - depth - 1)
            return _checked(raw, wanted, _added(body, node, f"{key}: {made}"), line)
        node = entry[1]
    return _checked(raw, wanted, body[: node.start_mark.index] + text + body[node.end_mark.index :], line)


def remove_value(raw: bytes, document: int, path: Path) -> bytes:
    """The file without the value at `path` of its `document`-th document, and without mappings that are empty then.

    The arguments are those of `set_value`; the value must be there.

    Raises:
        YamlError: the value cannot be removed without another change to what the file says.
    """
    wanted, body = _read(raw)
    while True:
        holder: Any = wanted[document].data
        for key in path[:-1]:
            holder = holder[key]
        if len(holder) > 1 or len(path) == 1 or not isinstance(path[-2], str):
            break
        path = path[:-1]
    del holder[path[-1]]

    node = _root(body, document)
    for key in path[:-1]:
        entry = _entry(node, key)
        if entry is None:
            raise YamlError(f"{key!r} is merged into what stands here", node.start_mark.line + 1)
        node = entry[1]
    return _checked(raw, wanted, _removed(body, node, path[-1]), node.start_mark.line + 1)


def _read(raw: bytes) -> tuple[list[Document], str]:
    return copy.deepcopy(read_documents(raw)), raw.decode("utf-8-sig")


def _root(body: str, document: int) -> yaml.Node:
    # Its depth and size were seen to before.
    return list(yaml.compose_all(body, Loader=yaml.CSafeLoader))[document]


def _checked(raw: bytes, wanted: Sequence[Document], body: str, line: int) -> bytes:
    """`body` as bytes, where it says what is wanted."""
    out = (codecs.BOM_UTF8 if raw.startswith(codecs.BOM_UTF8) else b"") + body.encode()
    try:
        same = [one.data for one in read_documents(out)] == [one.data for one in wanted]
    except YamlError:
        same = False
    if not same:
        raise YamlError("this cannot be changed in place without changing more than was asked for", line)
    return out


def _entry(node: yaml.Node, key: str | int) -> _Entry | None:
    """The key and the value at `key`, of a list the value twice; `None` where a mapping has no such key."""
    if isinstance(node, yaml.SequenceNode) and isinstance(key, int):
        return node.value[key], node.value[key]
    return next((entry for entry in node.value if entry[0].value == key), None)


def _added(body: str, node: yaml.Node, entry: str) -> str:
    """`body` with `entry` as the last one of the mapping `node`."""
    entries: list[_Entry] = node.value
    if _in_braces(node):
        at = _end(body, *entries[-1]) if entries else node.end_mark.index - 1
        return body[:at] + (", " if entries else "") + entry + body[at:]
    at = body.find("\n", _end(body, *entries[-1]))
    newline = "\r\n" if "\r\n" in body else "\n"
    head, rest = (body + newline, "") if at < 0 else (body[: at + 1], body[at + 1 :])
    return head + " " * entries[0][0].start_mark.column + entry + newline + rest


def _removed(body: str, node: yaml.Node, key: str | int) -> str:
    """`body` without the entry at `key` of the mapping `node`, which holds others."""
    entries: list[_Entry] = node.value
    at = next((i for i, entry in enumerate(entries) if entry[0].value == key), None)
    if at is None:
        raise YamlError(f"{key!r} is merged into what stands here", node.start_mark.line + 1)
    first, stop = entries[at][0].start_mark.index, _end(body, *entries[at])
    line = body.rfind("\n", 0, first) + 1
    if not _in_braces(node) and not body[line:first].strip():
        below = body.find("\n", stop)
        return body[:line] + (body[below + 1 :] if below >= 0 else "")
    if at + 1 < len(entries):
        return body[:first] + body[entries[at + 1][0].start_mark.index :]
    return body[: _end(body, *entries[at - 1])] + body[stop:]


def _in_braces(node: yaml.Node) -> bool:
    return isinstance(node, yaml.CollectionNode) and bool(node.flow_style)


def _end(body: str, key: yaml.Node | None, value: yaml.Node) -> int:
    """Where an entry ends, less the blank lines and comments that PyYAML counts to it."""
    if key is not None and value.start_mark.index < key.end_mark.index:
        # An alias: where it stands itself, no node says.
        return key.end_mark.index
    if isinstance(value, yaml.CollectionNode) and value.value and not _in_braces(value):
        last = value.value[-1]
        return _end(body, *last) if isinstance(value, yaml.MappingNode) else _end(body, None, last)
    return len(body[: value.end_mark.index].rstrip())
