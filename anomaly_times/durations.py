"""Durations as PromQL writes them (`90s`, `5m`, `1h30m`, `14d`), and times as JSON has them.

A step is a `timedelta` everywhere else: `5m` means five minutes in PromQL and five month-ends in pandas.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from anomaly_times.errors import UsageError

__all__ = ["EPOCH", "Duration", "DurationOrZero", "format_duration", "iso_utc", "milliseconds", "parse_duration"]

EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")

# Prometheus' own table: a year is 365 days, units come in falling order, each at most once.
_UNITS = {"y": 31_536_000_000, "w": 604_800_000, "d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
_PATTERN = re.compile(r"(?:(\d+)y)?(?:(\d+)w)?(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?(?:(\d+)ms)?", re.ASCII)
_LONGEST = 100 * _UNITS["y"]


def parse_duration(text: str) -> timedelta:
    """The duration that `text` spells, e.g. `1h30m`; positive, whole milliseconds, at most 100 years.

    Raises:
        UsageError: for anything else, among it `0s`, `-5m`, `1.5h` and a bare number.
    """
    match = _PATTERN.fullmatch(text.strip()) if len(text) <= 64 else None
    if match is None or not any(match.groups()):
        raise UsageError(f"{text[:64]!r} is not a duration", hint="write it like 30s, 5m, 1h30m or 14d")
    total = sum(int(count) * size for count, size in zip(match.groups(), _UNITS.values(), strict=True) if count)
    if total == 0:
        raise UsageError(f"{text!r} is no time at all", hint="a duration must be longer than zero")
    if total > _LONGEST:
        raise UsageError(f"{text!r} is longer than 100 years", hint="write it like 30s, 5m, 1h30m or 14d")
    return timedelta(milliseconds=total)


def format_duration(value: timedelta) -> str:
    """The shortest PromQL spelling in falling units, e.g. `1d12h`; years and weeks are written in days."""
    rest = milliseconds(value)
    sign, rest = ("-" if rest < 0 else ""), abs(rest)
    parts = []
    for unit, size in _UNITS.items():
        if unit in ("y", "w"):
            continue
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count}{unit}")
    return sign + ("".join(parts) or "0s")


def milliseconds(value: timedelta) -> int:
    """Whole milliseconds in `value`, rounded towards the past."""
    return value // timedelta(milliseconds=1)


def iso_utc(at: datetime) -> str:
    """A time with a zone in ISO 8601, in UTC: `2026-03-01T12:00:00Z`."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _coerce(value: object, *, zero: bool = False) -> timedelta:
    if isinstance(value, str) and zero and re.fullmatch(r"0(ms|s|m|h|d)?", value.strip()):
        return timedelta(0)
    if isinstance(value, str):
        try:
            return parse_duration(value)
        except UsageError as exc:
            raise ValueError(f"{exc.message}; {exc.hint}") from exc
    # A bare number would be seconds to pydantic, and is nothing to PromQL.
    if not isinstance(value, timedelta):
        raise ValueError(f"{str(value)[:40]!r} is not a duration; write it like 30s, 5m, 1h30m or 14d")
    if value < timedelta(0) or (not value and not zero) or value % timedelta(milliseconds=1):
        raise ValueError("must be longer than zero, in whole milliseconds")
    return value


_SPELLING = r"^(\d+y)?(\d+w)?(\d+d)?(\d+h)?(\d+m)?(\d+s)?(\d+ms)?$"
_SCHEMA = WithJsonSchema({"type": "string", "title": "Duration", "pattern": _SPELLING, "minLength": 2})
_WRITTEN = PlainSerializer(format_duration, return_type=str, when_used="json")

Duration = Annotated[timedelta, BeforeValidator(_coerce), _WRITTEN, _SCHEMA]
"""A `timedelta` field that reads and writes PromQL durations, longer than zero."""

DurationOrZero = Annotated[timedelta, BeforeValidator(partial(_coerce, zero=True)), _WRITTEN, _SCHEMA]
"""The same, where `0s` makes sense."""
