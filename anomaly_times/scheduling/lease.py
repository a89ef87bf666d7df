"""The right to run a pack: one run at a time, and none for a slot that a later run has covered.

A Variable on the Prefect server holds it: who runs the pack, until when, and for which time the pack last ran.
Prefect's own concurrency limits would do the first half, but keep their leases in the server's memory by default: what
is taken while the server restarts is never given back.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import httpx
from prefect.client.orchestration import PrefectClient
from prefect.exceptions import PrefectHTTPStatusError
from prefect.logging import get_logger

from anomaly_times.conventions import lease_name
from anomaly_times.errors import PrefectError

__all__ = ["LEASE", "Lease", "hold"]

LEASE = timedelta(seconds=90)
"""How long a lease outlives its holder: a worker that was killed blocks its packs no longer than this."""

_PAUSE = 3.0
"""Seconds between two looks at a pack that runs."""

logger = get_logger("anomaly_times.lease")


@dataclass
class Lease:
    """What `hold` answers. `refused` says why the pack must not run now, and is empty where it may.

    Set `done` to the time that the run worked for once it has. `until` is when the lease ends if nobody renews it, by
    the monotonic clock.
    """

    refused: str = ""
    done: datetime | None = None
    until: float = math.inf

    def check(self) -> None:
        """Nothing, while the pack is ours; safe to call from any thread.

        Raises:
            PrefectError: the lease was not renewed in time, or is gone, so that another run may have the pack.
        """
        if time.monotonic() > self.until:
            raise PrefectError(
                "this run lost its pack: its lease was not renewed in time, or somebody deleted it",
                hint="the next run of the pack does the rest; did the worker stand still, or the Prefect server?",
            )


@asynccontextmanager
async def hold(
    client: PrefectClient,
    slug: str,
    *,
    run: str,
    due: datetime | None = None,
    patience: timedelta = timedelta(0),
    lease: timedelta = LEASE,
) -> AsyncIterator[Lease]:
    """The lease of a pack while the body runs; renewed meanwhile, given back after it.

    Whoever works under it calls `Lease.check` before each thing that two runs must not do at once. A server that is
    away when the lease is given back gets a line in the log: the lease ends by itself.

    Args:
        client: of the server that all workers share.
        slug: the pack.
        run: who asks, for messages.
        due: the slot that the run is for; refused if the pack has run for a later time.
        patience: how long to wait for a pack that runs already.
        lease: how long it lasts when nobody renews it.
    """
    deadline = datetime.now(UTC) + patience
    while True:
        held, path = await _take(client, slug, run=run, due=due, lease=lease)
        if path or datetime.now(UTC) >= deadline:
            break
        await asyncio.sleep(_PAUSE)
    if not path:
        yield held
        return
    renewing = asyncio.create_task(_renew(client, path, held, slug=slug, run=run, lease=lease))
    try:
        yield held
    finally:
        renewing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await renewing
        try:
            await _ask(client, "PATCH", path, {"value": _value(slug, run, None, held.done)})
        except httpx.HTTPError as exc:
            logger.warning("the lease of %s was not given back, and ends by itself: %s", slug, exc)


async def _take(
    client: PrefectClient, slug: str, *, run: str, due: datetime | None, lease: timedelta
) -> tuple[Lease, str]:
    """The lease and the path of the Variable that holds it, or why not and an empty path."""
    now, began = datetime.now(UTC), time.monotonic()
    found = await _ask(client, "GET", f"/variables/name/{lease_name(slug)}")
    known: Mapping[str, Any] = found["value"] if found and isinstance(found["value"], Mapping) else {}
    done, until = _time(known.get("done")), _time(known.get("until"))
    if until is not None and until > now:
        return Lease(f"the pack is running already, in {known.get('run')}"), ""
    if due is not None and done is not None and done >= due:
        return Lease(f"the pack ran at {done:%Y-%m-%d %H:%M:%S} UTC, after this run was due"), ""
    # Of several that saw the same Variable only one can delete it, and of several that saw none only one can make it.
    free = found is None or await _ask(client, "DELETE", f"/variables/{found['id']}") is not None
    body = {"name": lease_name(slug), "value": _value(slug, run, now + lease, done)}
    made = await _ask(client, "POST", "/variables/", body) if free else None
    if made is None:
        return Lease("the pack was taken by another run in this moment"), ""
    return Lease(done=done, until=began + lease.total_seconds()), f"/variables/{made['id']}"


async def _renew(client: PrefectClient, path: str, held: Lease, *, slug: str, run: str, lease: timedelta) -> None:
    while True:
        await asyncio.sleep(lease / timedelta(seconds=3))
        began = time.monotonic()
        try:
            value = _value(slug, run, datetime.now(UTC) + lease, held.done)
            if await _ask(client, "PATCH", path, {"value": value}) is None:
                logger.warning("the lease of %s is gone: this run stood still too long, or it was deleted", slug)
                held.until = -math.inf
                return
            held.until = began + lease.total_seconds()
        except httpx.HTTPError as exc:
            logger.warning("the lease of %s was not renewed: %s", slug, exc)


def _value(slug: str, run: str, until: datetime | None, done: datetime | None) -> dict[str, str | None]:
    times = {"until": until.isoformat() if until else None, "done": done.isoformat() if done else None}
    return {"pack": slug, "run": run, **times}


async def _ask(
    client: PrefectClient, method: Literal["GET", "POST", "PATCH", "DELETE"], path: str, body: object = None
) -> dict[str, Any] | None:
    """The answer (empty where there is no body); `None` where the Variable is gone, or there already."""
    try:
        answer = await client.request(method, path, json=body)  # type: ignore[arg-type]
    except PrefectHTTPStatusError as exc:
        if exc.response.status_code in (404, 409):
            return None
        raise
    return dict(answer.json()) if answer.content else {}


def _time(text: object) -> datetime | None:
    """A time with a zone; `None` for anything else, as a Variable can be edited by hand."""
    try:
        time = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return time if time.tzinfo else None
