"""A Prefect server, as missions see it: every call to its API for reading and changing what is deployed.

A deployment that is there is never written as a whole: that wipes schedules that other people added. Single schedules
are posted, patched and deleted, always with their parameters, which a patch without them would empty.
"""

from __future__ import annotations

import itertools
import os
import random
import socket
import threading
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import msgspec

from anomaly_times.conventions import (
    DETECTION_DEPLOYMENT,
    FORECASTING_DEPLOYMENT,
    TAG,
    TAG_PAUSED,
    Kind,
    lease_name,
    lock_name,
    mission_of_variable,
    project_tag,
    variable_name,
)
from anomaly_times.deployed import DeployedMission, Pause, to_value, with_pause
from anomaly_times.durations import EPOCH
from anomaly_times.errors import PrefectError, UsageError
from anomaly_times.plan import KINDS, FirstRun, Found, PackSchedule, State, Timing
from anomaly_times.settings import PrefectApi

__all__ = [
    "DEPLOYMENTS",
    "PAGE",
    "BaseDeployment",
    "EndedRun",
    "Lock",
    "PrefectServer",
    "connect",
    "is_set",
    "joined",
    "read_timing",
]

T = TypeVar("T")

DEPLOYMENTS: Mapping[Kind, str] = {"forecast": FORECASTING_DEPLOYMENT, "detect": DETECTION_DEPLOYMENT}

_URL = "PREFECT_API_URL"
PAGE = 200
"""The most that the server gives at once."""
_READS = 20
"""Attempts to read a list that changes while it is read."""
_AT_ONCE = 8
"""Reads at a time."""
_AWAY_FOR, _BUSY_FOR = 5.0, 120.0
"""Seconds after which a server that does not answer, or that is busy, is given up.

On SQLite all its writers can block each other, and Prefect lets them wait for a minute before it answers 503.
"""
_ANSWERS_WITHIN = 90.0
_SKIPPED = "Skipped"
"""The state of a run whose work another one does, or did."""
_BUSY = frozenset({429, 502, 503, 504})
_HELD_FOR = 60.0
"""Seconds after which a lock that nobody renewed belongs to a process that is gone."""


class RefusedError(PrefectError):
    """The server understood and says no: `status` is its HTTP status."""

    def __init__(self, message: str, *, hint: str = "", status: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.status = status


@dataclass(frozen=True)
class BaseDeployment:
    """One of the two deployments that run missions, with all of its schedules as the server gives them."""

    kind: Kind
    id: str
    paused: bool
    schedules: Sequence[Mapping[str, Any]]
    work_pool: str = ""
    job_variables: Mapping[str, Any] = field(default_factory=dict)
    tags: Sequence[str] = ()


@dataclass(frozen=True)
class EndedRun:
    """A flow run that ended: what it was about (a pack, missions, a query, or its own name), when, and in which state.

    `missions` are those that it was asked for by name, none where it was for a pack or a query. `errors` are those of
    its missions by name, `None` where they are not known: it failed before, or nobody asked.
    """

    id: str
    kind: Kind
    about: str
    ended: datetime
    state: str
    message: str = ""
    missions: tuple[str, ...] = ()
    errors: Mapping[str, str] | None = None


def connect(settings: PrefectApi) -> PrefectServer:
    """The server that the settings name, or else Prefect's own: its environment variables, then its active profile.

    Credentials go only to the server that they were set for: a project's file may name any.

    Raises:
        UsageError: none is named.
    """
    url = _server_url(settings)
    if not url:
        raise UsageError(
            "no Prefect server is set",
            hint="set PREFECT_API_URL, or `prefect: {api_url: …}` in anomaly-times.yaml; `at up` starts one",
        )
    key, login = (given.get_secret_value() if given else "" for given in (settings.api_key, settings.auth_string))
    if not (key or login):
        key, login = _prefects_credentials(url)
    return PrefectServer(url, api_key=key, auth_string=login)


def is_set(settings: PrefectApi) -> bool:
    """Whether `connect` would find a server named."""
    return bool(_server_url(settings))


def _server_url(settings: PrefectApi) -> str:
    return settings.api_url or os.environ.get(_URL) or _profile().get(_URL, "")


def _prefects_credentials(url: str) -> tuple[str, str]:
    """The API key and the login that Prefect itself would send to `url`; of its environment, else of its profile.

    Those of the environment are for the server that Prefect would ask, those of the profile for the profile's.
    """
    profile = _profile()
    places: list[Mapping[str, str]] = []
    if _same(url, os.environ.get(_URL) or profile.get(_URL, "")):
        places.append(os.environ)
        if _same(url, profile.get(_URL, "")):
            places.append(profile)
    found = ((place.get("PREFECT_API_KEY", ""), place.get("PREFECT_API_AUTH_STRING", "")) for place in places)
    return next((pair for pair in found if any(pair)), ("", ""))


def _same(url: str, other: str) -> bool:
    return url.rstrip("/") == other.rstrip("/")


def _profile() -> Mapping[str, str]:
    """Prefect's active profile; its settings module alone takes seconds to import.

    Raises:
        UsageError: the file of profiles is broken.
    """
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    file = Path(os.environ.get("PREFECT_PROFILES_PATH", home / "profiles.toml")).expanduser()
    try:
        profiles = tomllib.loads(file.read_text())
    except OSError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise UsageError(f"{file} is no TOML", hint="`prefect config view` shows what Prefect reads") from exc
    active = os.environ.get("PREFECT_PROFILE") or profiles.get("active", "")
    return {name: str(value) for name, value in profiles.get("profiles", {}).get(active, {}).items()}


class PrefectServer:
    """The API of a Prefect server; safe to use from several threads.

    Requests are tried again while the server is away for a moment, or busy (SQLite answers 503 "database is locked"
    under light load). Every method raises `PrefectError`: away, refused credentials, or no Prefect at all.

    Args:
        url: of the API, e.g. `http://localhost:4200/api`.
        api_key: for Prefect Cloud.
        auth_string: `user:password`, for a server of one's own.
        transport: in place of the network, for tests.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str = "",
        auth_string: str = "",
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        login: tuple[str, str] | None = None
        if auth_string:
            user, _, password = auth_string.partition(":")
            login = (user, password)
        self._client = httpx.Client(
            base_url=url.rstrip("/") + "/",
            headers={"Authorization": f"Bearer {api_key}"} if api_key and not login else {},
            auth=login,
            timeout=httpx.Timeout(_ANSWERS_WITHIN, connect=5),
            limits=httpx.Limits(max_connections=_AT_ONCE + 2),
            transport=transport,
        )
        self.url = httpx.URL(url).copy_with(username=None, password=None, query=None)

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, method: str, path: str, body: object = None) -> Any:
        return self._answer(method, path, body)[0]

    def _answer(self, method: str, path: str, body: object = None) -> tuple[Any, httpx.Response]:
        """The decoded answer of a request, which is repeated while the server is away for a moment, or busy."""
        content = None if body is None else msgspec.json.encode(body)
        headers = {} if body is None else {"Content-Type": "application/json"}
        began, pause = time.monotonic(), 0.1
        while True:
            failed: Exception | None = None
            try:
                response = self._client.request(method, path, content=content, headers=headers)
                patience = _BUSY_FOR if response.status_code in _BUSY else 0.0
            except httpx.TransportError as exc:
                failed, patience = exc, _AWAY_FOR
            except (httpx.InvalidURL, httpx.DecodingError) as exc:
                raise PrefectError(f"{self.url} cannot be asked: {exc}", hint="see PREFECT_API_URL") from exc
            if time.monotonic() - began + pause > patience:
                break
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, 3.0)
        if failed is not None:
            raise PrefectError(
                f"the Prefect server {self.url} does not answer: {str(failed) or type(failed).__name__}",
                hint="is it running? `at up` starts one, PREFECT_API_URL says where it is",
            ) from failed
        return self._decoded(method, path, response), response

    def _decoded(self, method: str, path: str, response: httpx.Response) -> Any:
        status = response.status_code
        if status in (401, 403):
            raise PrefectError(
                f"the Prefect server {self.url} refuses our credentials ({status})",
                hint="set PREFECT_API_AUTH_STRING (user:password) or PREFECT_API_KEY beside PREFECT_API_URL; a server "
                "that anomaly-times.yaml names has AT_PREFECT__AUTH_STRING or AT_PREFECT__API_KEY",
            )
        if status == 204:
            return None
        try:
            answer = msgspec.json.decode(response.content)
        except msgspec.DecodeError as exc:
            raise PrefectError(
                f"{self.url} answers {status} and no JSON: that is no API of Prefect",
                hint="its URL ends in /api, like http://localhost:4200/api",
            ) from exc
        if response.is_success:
            return answer
        words = answer.get("detail", answer.get("exception_detail", "")) if isinstance(answer, Mapping) else answer
        raise RefusedError(f"Prefect answers {status} to {method} {path}: {str(words)[:300]}", status=status)

    # -- reading -----------------------------------------------------------------------------------------------

    def read_state(self, project: str, names: Iterable[str] = ()) -> State:
        """The missions of `project` and those called `names`, whosever they are, and the pack schedules of `project`.

        Raises:
            PrefectError: besides what any method raises, missions came and went while they were read.
        """
        found = {}
        for variable in self._variables(project, names):
            if mission_of_variable(variable["name"]):
                one = Found.of(variable["name"], variable["value"], variable["tags"])
                found[one.name] = one
        bases = self.base_deployments()
        ours = f"at:{project}:"
        schedules = [
            _pack_schedule(base.kind, schedule)
            for base in bases
            for schedule in base.schedules
            if str(schedule.get("slug") or "").startswith(ours)
        ]
        return State(
            found,
            schedules,
            {base.kind: base.id for base in bases},
            frozenset(base.kind for base in bases if base.paused),
        )

    def _variables(self, project: str, names: Iterable[str]) -> Iterator[Mapping[str, Any]]:
        seen = set()
        for variable in self._tagged([TAG, project_tag(project)]):
            seen.add(variable["name"])
            yield variable
        # What lost its tags, or is somebody else's, must be seen before it is in the way.
        missing = sorted({variable_name(name) for name in names} - seen)
        chunks = [missing[i : i + PAGE] for i in range(0, len(missing), PAGE)]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for page in pool.map(lambda chunk: self._page({"name": {"any_": chunk}}, 0), chunks):
                yield from page

    def _tagged(self, tags: Sequence[str]) -> list[Mapping[str, Any]]:
        """All Variables with these tags, none left out however many come and go meanwhile."""
        where = {"tags": {"all_": list(tags)}}
        for _ in range(_READS):
            total = self._ask("POST", "variables/count", {"variables": where})
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                pages = list(pool.map(partial(self._page, where), range(0, max(total, 1), PAGE - 1)))
            found = joined(pages)
            if found is not None:
                return found
        raise PrefectError(
            f"the missions on {self.url} change while they are read", hint="wait until another apply has ended"
        )

    def _page(self, where: Mapping[str, Any], offset: int) -> list[Mapping[str, Any]]:
        body = {"variables": where, "limit": PAGE, "offset": offset, "sort": "NAME_ASC"}
        return list(self._ask("POST", "variables/filter", body))

    def read_mission(self, name: str) -> Found | None:
        """What is deployed under the name of a mission."""
        variable = self._variable(variable_name(name))
        return Found.of(variable["name"], variable["value"], variable["tags"]) if variable else None

    def _variable(self, name: str) -> dict[str, Any] | None:
        try:
            return dict(self._ask("GET", f"variables/name/{name}"))
        except RefusedError as exc:
            if exc.status == 404:
                return None
            raise

    def base_deployments(self) -> list[BaseDeployment]:
        """The base deployments that exist, with every schedule on them."""
        bases = []
        for kind in KINDS:
            try:
                answer = self._ask("GET", f"deployments/name/{DEPLOYMENTS[kind]}")
            except RefusedError as exc:
                if exc.status != 404:
                    raise
            else:
                runs_in = answer.get("work_pool_name") or "", answer.get("job_variables") or {}
                head = kind, answer["id"], bool(answer["paused"]), answer["schedules"]
                bases.append(BaseDeployment(*head, *runs_in, tags=answer.get("tags") or ()))
        return bases

    def ended_runs(self, *, since: datetime) -> list[EndedRun]:
        """All runs of the base deployments that ended, not before `since`, newest first."""
        kinds = {base.id: base.kind for base in self.base_deployments()}
        found: dict[str, EndedRun] = {}
        if not kinds:
            return []
        for offset in itertools.count(0, PAGE):
            # One that ends meanwhile moves the others back: some come twice, and none is missed.
            page = self._ended(kinds, {"end_time": {"after_": since.isoformat()}}, limit=PAGE, offset=offset)
            found |= {run.id: run for run in page}
            if len(page) < PAGE:
                break
        return list(found.values())

    def last_runs(self, project: str, state: State) -> list[EndedRun]:
        """How the last run of each pack of `project` ended, and the newest of those that were asked for.

        A run that was skipped did nothing, and is none of them. `errors` are known of all that went wrong.

        Args:
            project: whose.
            state: of the server, as `read_state` gives it.
        """
        kinds = {deployment: kind for kind, deployment in state.deployments.items()}
        asked = {"tags": {"all_": [TAG, project_tag(project)]}}
        wanted = [(asked, PAGE), *(({"created_by": {"id_": [schedule.id]}}, 1) for schedule in state.schedules)]

        def read(one: tuple[Mapping[str, Any], int]) -> list[EndedRun]:
            where = {**one[0], "end_time": {"is_null_": False}, "state": {"name": {"not_any_": [_SKIPPED]}}}
            return self._ended(kinds, where, limit=one[1])

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            found = {run.id: run for runs in pool.map(read, wanted) for run in runs}
        errors = self._errors([run.id for run in found.values() if run.state != "Completed"])
        runs = (replace(run, errors=errors.get(run.id)) for run in found.values())
        return sorted(runs, key=lambda run: run.ended, reverse=True)

    def _ended(
        self, kinds: Mapping[str, Kind], where: Mapping[str, Any], *, limit: int, offset: int = 0
    ) -> list[EndedRun]:
        """Runs of the deployments in `kinds` that ended, newest first."""
        body = {
            "sort": "END_TIME_DESC",
            "limit": limit,
            "offset": offset,
            "flow_runs": {"deployment_id": {"any_": list(kinds)}, **where},
        }
        runs = []
        for run in self._ask("POST", "flow_runs/filter", body):
            given, state = run.get("parameters") or {}, run.get("state") or {}
            named = given.get("mission") or []
            missions = (named,) if isinstance(named, str) else tuple(map(str, named))
            several = f"{len(missions):,} missions" if len(missions) > 1 else "".join(missions)
            about = given.get("pack") or several or given.get("promql") or run["name"]
            about = ", ".join(about) if isinstance(about, list) else about
            kind, at = kinds[run["deployment_id"]], datetime.fromisoformat(run["end_time"])
            message = state.get("message") or ""
            runs.append(EndedRun(run["id"], kind, str(about), at, str(run["state_name"]), message, missions))
        return runs

    def _errors(self, runs: Sequence[str]) -> dict[str, dict[str, str]]:
        """By run, from the tables that runs leave behind, the errors of missions by name."""
        errors: dict[str, dict[str, str]] = {}
        for chunk in (runs[i : i + PAGE] for i in range(0, len(runs), PAGE)):
            where = {"flow_run_id": {"any_": chunk}, "key": {"any_": [f"{kind}-missions" for kind in KINDS]}}
            body = {"artifacts": where, "limit": PAGE}
            for table in self._ask("POST", "artifacts/filter", body):
                rows = msgspec.json.decode(table["data"])
                errors[table["flow_run_id"]] = {row["mission"]: row["error"] for row in rows if row.get("error")}
        return errors

    # -- changing ----------------------------------------------------------------------------------------------

    def create_mission(self, deployed: DeployedMission) -> None:
        """Make the Variable of a mission that has none; one that is there already with this content is fine."""
        name = variable_name(deployed.mission.name)
        value = to_value(deployed)
        try:
            self._ask("POST", "variables/", {"name": name, "value": value, "tags": deployed.tags})
        except RefusedError as exc:
            # An attempt whose answer was lost on the way may have made it.
            there = self._variable(name) if exc.status == 409 else None
            if there is None or there["value"] != value or sorted(there["tags"]) != sorted(deployed.tags):
                raise

    def update_mission(self, deployed: DeployedMission) -> None:
        """Write the Variable of a mission that has one."""
        name = variable_name(deployed.mission.name)
        self._ask("PATCH", f"variables/name/{name}", {"value": to_value(deployed), "tags": deployed.tags})

    def pause_mission(self, name: str, pause: Pause | None) -> None:
        """Let a mission rest, or (`None`) go on; nothing else of its Variable changes."""
        path = f"variables/name/{variable_name(name)}"
        there = self._ask("GET", path)
        tags = [tag for tag in there["tags"] if tag != TAG_PAUSED] + ([TAG_PAUSED] if pause else [])
        self._ask("PATCH", path, {"value": with_pause(there["value"], pause), "tags": tags})

    def delete_mission(self, name: str) -> None:
        """Remove the Variable of a mission; one that is gone is fine."""
        self._gone(f"variables/name/{variable_name(name)}")

    def create_schedule(self, deployment: str, schedule: PackSchedule) -> None:
        """Add a pack schedule; one that is there already under its slug is made like it."""
        path = f"deployments/{deployment}/schedules"
        try:
            self._ask("POST", path, [_schedule_body(schedule)])
        except RefusedError as exc:
            # SQLite's unique index shows as 500 or 409.
            there = [s for s in self._ask("GET", path) if s["slug"] == schedule.slug] if exc.status >= 409 else []
            if not there:
                raise
            self._ask("PATCH", f"{path}/{there[0]['id']}", _schedule_body(schedule))

    def patch_schedule(self, deployment: str, schedule: PackSchedule) -> None:
        """Make the schedule with the id of `schedule` like it."""
        self._ask("PATCH", f"deployments/{deployment}/schedules/{schedule.id}", _schedule_body(schedule))

    def delete_pack(self, deployment: str, schedule: PackSchedule) -> None:
        """Remove the schedule of a pack that has no members, and the Variable by which its runs took turns."""
        self.delete_schedule(deployment, schedule.id)
        self._gone(f"variables/name/{lease_name(schedule.slug)}")

    def delete_schedule(self, deployment: str, schedule: str) -> None:
        """Remove a schedule by its id; one that is gone is fine."""
        self._gone(f"deployments/{deployment}/schedules/{schedule}")

    def _gone(self, path: str) -> None:
        try:
            self._ask("DELETE", path)
        except RefusedError as exc:
            if exc.status != 404:
                raise

    def start_run(self, deployment: str, run: FirstRun, *, tags: Sequence[str]) -> bool:
        """Start a run besides the schedules; `False` where one with the same key had been started before."""
        body = {
            "parameters": run.parameters,
            "idempotency_key": run.key,
            "tags": list(tags),
            "state": {"type": "SCHEDULED", "state_details": {"scheduled_time": run.at.isoformat()}},
        }
        _, response = self._answer("POST", f"deployments/{deployment}/create_flow_run", body)
        return response.status_code == 201

    def asked_forecasts(self, deployment: str, project: str, *, since: datetime) -> dict[str, datetime]:
        """By mission the last time, after `since`, for which a forecast of it was asked for besides the schedules.

        Runs that failed do not count.
        """
        failed = ["FAILED", "CRASHED", "CANCELLED", "CANCELLING"]
        where = {
            "deployment_id": {"any_": [deployment]},
            "tags": {"all_": [TAG, project_tag(project)]},
            "expected_start_time": {"after_": since.isoformat()},
            "state": {"type": {"not_any_": failed}},
        }
        asked: dict[str, datetime] = {}
        for offset in itertools.count(0, PAGE):
            # In the order of their ids: one that ends meanwhile stays where it is, and new ones only we make.
            body = {"flow_runs": where, "sort": "ID_DESC", "limit": PAGE, "offset": offset}
            page = self._ask("POST", "flow_runs/filter", body)
            for run in page:
                at, given = datetime.fromisoformat(run["expected_start_time"]), (run["parameters"] or {}).get("mission")
                for name in [given] if isinstance(given, str) else given or []:
                    asked[name] = max(at, asked.get(name, at))
            if len(page) < PAGE:
                break
        return asked

    def ensure_work_pool(self, name: str, template: Mapping[str, Any]) -> bool:
        """Make a work pool for process workers where none is called so; `False` where one is, of whatever type."""
        try:
            self._ask("POST", "work_pools/", {"name": name, "type": "process", "base_job_template": template})
        except RefusedError as exc:
            if exc.status != 409:
                raise
            return False
        return True

    def deploy_base(self, kind: Kind, id: str | None, spec: Mapping[str, Any]) -> None:  # noqa: A002 - as Prefect says
        """Make a base deployment, or change the fields in `spec` of the one that there is; its schedules stay."""
        if id is not None:
            self._ask("PATCH", f"deployments/{id}", spec)
            return
        flow, name = DEPLOYMENTS[kind].split("/")
        made = self._ask("POST", "flows/", {"name": flow})
        self._ask("POST", "deployments/", {"name": name, "flow_id": made["id"], **spec})

    def for_each(
        self,
        function: Callable[[T], object],
        items: Iterable[T],
        *,
        at_once: int = 1,
        on_done: Callable[[T], None] = lambda _: None,
    ) -> None:
        """`function(item)` for each item, `at_once` at a time; `on_done` is told each, in this thread.

        One, for what reads before it writes: of two such requests SQLite refuses one, which begins again and may lose
        for minutes. What only adds waits for its turn, so two keep the server busy; with eight all wait for each other
        until SQLite gives up, a minute each time.

        The first error is raised when what had begun has ended; what had not is not begun.
        """
        with ThreadPoolExecutor(at_once) as pool:
            waiting = {pool.submit(function, item): item for item in items}
            try:
                for future in as_completed(waiting):
                    future.result()
                    on_done(waiting[future])
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    # -- locking -----------------------------------------------------------------------------------------------

    @contextmanager
    def lock(self, project: str, *, patience: timedelta = timedelta(minutes=5)) -> Iterator[Lock]:
        """Keep everybody else from changing what is deployed of `project` while the body runs.

        A Variable that only one can create; its holder renews it, and one that was not renewed for a minute is taken
        over.

        Raises:
            PrefectError: somebody else held it all the time.
        """
        lock = self._take(lock_name(project), project, patience.total_seconds())
        lock.start()
        try:
            yield lock
        finally:
            lock.release()

    def _take(self, name: str, project: str, patience: float) -> Lock:
        until = time.monotonic() + patience
        owner = f"process {os.getpid()} on {socket.gethostname()}"
        while True:
            value = {"owner": owner, "taken": _now()}
            try:
                made, response = self._answer("POST", "variables/", {"name": name, "value": value})
            except RefusedError as exc:
                if exc.status != 409:
                    raise
            else:
                return Lock(self, made["id"], value, seen=_sent(response))
            try:
                there, response = self._answer("GET", f"variables/name/{name}")
            except RefusedError as exc:
                if exc.status != 404:
                    raise
                continue
            if _age(there, response) > _HELD_FOR:
                # By its id: of two that find it old, one removes it, and neither removes the other's.
                self._gone(f"variables/{there['id']}")
                continue
            if time.monotonic() > until:
                held = there["value"].get("owner") if isinstance(there["value"], Mapping) else ""
                raise PrefectError(
                    f"project {project} is being changed by {held or 'somebody else'}",
                    hint=f"wait until that has ended; if it crashed, the lock {name} is free within a minute",
                )
            time.sleep(min(1.0, max(0.05, until - time.monotonic())))


class Lock:
    """A lock that is held, and renewed by a thread of its own until it is released.

    Args:
        server: that keeps it.
        id: of the Variable.
        value: of the Variable.
        seen: when it was ours for certain, by the monotonic clock.
    """

    def __init__(
        self,
        server: PrefectServer,
        id: str,  # noqa: A002 - as Prefect says
        value: Mapping[str, Any],
        *,
        seen: float,
    ) -> None:
        self._server = server
        self._path = f"variables/{id}"
        self._value = value
        self._seen = seen
        self._lost = False
        self._renewing = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lock", daemon=True)

    def start(self) -> None:
        """Begin to renew it."""
        self._thread.start()

    def check(self) -> None:
        """Nothing, while it is held; where it was not renewed for long, the server is asked.

        Raises:
            PrefectError: it was taken over, because we could not renew it for a minute, or that cannot be found out.
        """
        if not self._lost and time.monotonic() - self._seen > _HELD_FOR / 2:
            self._renew()
        if self._lost:
            raise PrefectError(
                "another process took over: nothing was heard of this one for a minute", hint="run again"
            )

    def release(self) -> None:
        """Let others have it; a server that is away by now will give it to them in a minute."""
        self._over.set()
        self._thread.join()
        try:
            self._server._gone(self._path)
        except PrefectError:
            return

    def _keep(self) -> None:
        while not self._over.wait(_HELD_FOR / 4):
            try:
                self._renew()
            except PrefectError:
                continue  # whoever changes something meanwhile will hear of it

    def _renew(self) -> None:
        began = time.monotonic()
        with self._renewing:
            if self._lost or self._seen > began:
                return  # another thread has found out meanwhile
            try:
                body = {"value": {**self._value, "renewed": _now()}}
                _, response = self._server._answer("PATCH", self._path, body)
            except RefusedError as exc:
                # Once it is gone it is somebody else's, whatever the server says later.
                self._lost = self._lost or exc.status == 404
                if not self._lost:
                    raise
            else:
                self._seen = _sent(response)


def _sent(response: httpx.Response) -> float:
    """When the request of an answer was sent, by the monotonic clock."""
    return time.monotonic() - response.elapsed.total_seconds()


def joined(pages: Sequence[Sequence[Mapping[str, Any]]]) -> list[Mapping[str, Any]] | None:
    """The Variables of pages of `PAGE` in one order, of which each begins with the last one of the page before.

    `None` where one does not, or the last page is full: something came or went between two reads, and what was on the
    border of two pages may be in neither. Else every Variable that was there all the time is there, since those on the
    borders stayed where they were.
    """
    found: list[Mapping[str, Any]] = []
    for page in pages:
        if found and (not page or page[0]["id"] != found[-1]["id"]):
            return None
        found += page[1:] if found else page
    return found if not pages or len(pages[-1]) < PAGE else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _age(variable: Mapping[str, Any], response: httpx.Response) -> float:
    """Seconds since a Variable was written, by the server's own clock."""
    try:
        now = parsedate_to_datetime(response.headers["date"])
    except (KeyError, ValueError):
        now = datetime.now(UTC)
    return (now - datetime.fromisoformat(variable["updated"])).total_seconds()


def _pack_schedule(kind: Kind, schedule: Mapping[str, Any]) -> PackSchedule:
    return PackSchedule(
        schedule["slug"],
        kind,
        read_timing(schedule["schedule"]),
        bool(schedule["active"]),
        schedule["parameters"] or {},
        schedule["id"],
    )


def read_timing(schedule: Mapping[str, Any]) -> Timing | None:
    """When a schedule runs, as the server says it; `None` for a kind that we do not make."""
    zone = schedule.get("timezone") or "UTC"
    if "interval" in schedule:
        anchor = datetime.fromisoformat(schedule["anchor_date"])
        return Timing(timedelta(seconds=schedule["interval"]), anchor - EPOCH, timezone=zone)
    if "cron" in schedule:
        return Timing(cron=schedule["cron"], timezone=zone)
    return None


def _schedule_body(schedule: PackSchedule) -> dict[str, Any]:
    timing = schedule.timing or Timing()
    when: dict[str, Any]
    if timing.every is None:
        when = {"cron": timing.cron, "timezone": timing.timezone}
    else:
        anchor = (EPOCH + timing.phase).isoformat()
        when = {"interval": timing.every.total_seconds(), "anchor_date": anchor, "timezone": "UTC"}
    return {
        "schedule": when,
        "active": schedule.active,
        "parameters": dict(schedule.parameters),
        "slug": schedule.slug,
    }
