"""Making what is deployed what the files say: a plan is carried out under a lock, in an order that a crash cannot hurt.

Missions first, then the schedules that run them, then first forecasts; deletions last. Each step can be repeated, so
an apply that was cut off is completed by the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from uuid import uuid4

from anomaly_times.conventions import TAG, project_tag
from anomaly_times.deployed import DeployedMission, Pause
from anomaly_times.errors import MissionError, PrefectError
from anomaly_times.mission import Mission
from anomaly_times.plan import (
    KINDS,
    Create,
    Delete,
    FirstRun,
    Found,
    Plan,
    Refuse,
    ScheduleChange,
    Update,
    build_plan,
    first_runs,
    new_missions,
)
from anomaly_times.scheduling.server import Lock, PrefectServer

__all__ = ["apply", "delete", "pause", "plan", "run_now"]

Told = Callable[[str, str], None]
"""Is told each action that is done: what (`create`, `update`, …), and to whom."""

PATIENCE = timedelta(minutes=5)


def plan(server: PrefectServer, wanted: Sequence[Mission], *, project: str, now: datetime, prune: bool = False) -> Plan:
    """What `apply` would do now.

    Raises:
        PrefectError, UsageError, MissionError: as `build_plan` and `PrefectServer.read_state`.
    """
    state = server.read_state(project, [mission.name for mission in wanted])
    return build_plan(wanted, state, project=project, now=now, prune=prune)


def apply(
    server: PrefectServer,
    wanted: Sequence[Mission],
    *,
    project: str,
    clock: Callable[[], datetime],
    prune: bool = False,
    expect: str = "",
    patience: timedelta = PATIENCE,
    on_plan: Callable[[Plan], None] = lambda _: None,
    on_done: Told = lambda *_: None,
) -> Plan:
    """Make what is deployed of `project` what `wanted` says; gives the plan that was carried out.

    Args:
        server: where.
        wanted: the missions of the files.
        project: whose they are.
        clock: the time, with a time zone.
        prune: delete what `wanted` does not have.
        expect: the fingerprint of a plan that was shown; nothing is done where the state is not that any more.
        patience: how long to wait for another apply.
        on_plan: is told the plan before it is carried out.
        on_done: is told each action when it is done.

    Raises:
        MissionError: a name that is not ours to take.
        PrefectError: the server fails, another apply lasts too long, or the state is not the expected one.
    """
    with server.lock(project, patience=patience) as lock:
        made = plan(server, wanted, project=project, now=clock(), prune=prune)
        if expect and made.fingerprint != expect:
            raise PrefectError(
                "what is deployed has changed since this plan was made; nothing was done", hint="make the plan again"
            )
        if refused := made.of(Refuse):
            names = "; ".join(f"{refusal.name}: {refusal.reason}" for refusal in refused[:5])
            more = f", and {len(refused) - 5} more" if len(refused) > 5 else ""
            raise MissionError(f"nothing was done, because of {names}{more}", hint=refused[0].hint)
        on_plan(made)
        try:
            _carry_out(server, made, lock, clock, on_done)
        except PrefectError as exc:
            hint = f"{exc.hint}; " if exc.hint else ""
            raise PrefectError(exc.message, hint=f"{hint}apply again: it goes on where it stopped") from exc
    return made


def _carry_out(server: PrefectServer, made: Plan, lock: Lock, clock: Callable[[], datetime], on_done: Told) -> None:
    deployments = {base.kind: base.id for base in server.base_deployments()}

    def create(change: Create) -> None:
        lock.check()
        server.create_mission(change.target)

    def update(change: Update) -> None:
        lock.check()
        server.update_mission(change.target)

    def schedule(change: ScheduleChange) -> None:
        lock.check()
        deployment = deployments[change.schedule.kind]
        if change.action == "create":
            server.create_schedule(deployment, change.schedule)
        elif change.action == "patch":
            server.patch_schedule(deployment, change.schedule)
        else:
            server.delete_pack(deployment, change.schedule)

    def tell_schedule(change: ScheduleChange) -> None:
        on_done(change.action, f"schedule {change.schedule.slug}")

    def start(run: FirstRun) -> None:
        lock.check()
        if server.start_run(deployments["forecast"], run, tags=[TAG, project_tag(made.project)]):
            on_done("start", f"first forecast of {run.missions}")

    def remove(change: Delete) -> None:
        lock.check()
        server.delete_mission(change.name)

    server.for_each(create, made.of(Create), at_once=2, on_done=lambda change: on_done("create", change.name))
    server.for_each(update, made.of(Update), on_done=lambda change: on_done("update", change.name))
    server.for_each(schedule, [s for s in made.schedules if s.action != "delete"], on_done=tell_schedule)
    now = clock()
    if fresh := new_missions(made, now=now):
        asked = server.asked_forecasts(deployments["forecast"], made.project, since=min(new.since for new in fresh))
        server.for_each(start, first_runs(fresh, now=now, asked=asked))
    server.for_each(remove, made.of(Delete), on_done=lambda change: on_done("delete", change.name))
    server.for_each(schedule, [s for s in made.schedules if s.action == "delete"], on_done=tell_schedule)


def pause(server: PrefectServer, name: str, wanted: Pause | None, *, project: str) -> DeployedMission:
    """Let a mission rest, or (`None`) go on; gives it as it is deployed now.

    Raises:
        MissionError: there is no such mission, it is another project's, or it is broken.
        PrefectError: the server fails.
    """
    with server.lock(project, patience=PATIENCE):
        found = our_mission(server, name, project=project)
        if found.deployed is None:
            raise MissionError(found.error, hint="apply the mission's file again")
        server.pause_mission(name, wanted)
    return replace(found.deployed, paused=wanted)


def run_now(server: PrefectServer, name: str, *, project: str, now: datetime) -> None:
    """Start a forecast and a detection of one mission, besides the schedules.

    Raises:
        MissionError: there is no such mission, or it is another project's.
        PrefectError: the server fails, or lacks a base deployment.
    """
    our_mission(server, name, project=project)
    deployments = {base.kind: base.id for base in server.base_deployments()}
    for kind in KINDS:
        if kind not in deployments:
            raise PrefectError(f"the Prefect server has no deployment for {kind}", hint="`at deploy` makes them")
        run = FirstRun({"mission": name}, f"at-run-{uuid4()}", now)
        server.start_run(deployments[kind], run, tags=[TAG, project_tag(project)])


def delete(server: PrefectServer, name: str, *, project: str) -> None:
    """Remove a mission from the server, and the schedules of packs that are empty then.

    Raises:
        MissionError: there is no such mission, or it is another project's.
        PrefectError: the server fails.
    """
    with server.lock(project, patience=PATIENCE):
        our_mission(server, name, project=project)
        state = server.read_state(project)
        server.delete_mission(name)
        inhabited = {slug for found in state.found.values() if found.name != name for slug in found.packs}
        for schedule in state.schedules:
            if schedule.slug not in inhabited:
                server.delete_pack(state.deployments[schedule.kind], schedule)


def our_mission(server: PrefectServer, name: str, *, project: str) -> Found:
    """What is deployed of a mission of ours.

    Raises:
        MissionError: there is no such mission, or it is not ours.
        PrefectError: the server fails.
    """
    found = server.read_mission(name)
    if found is None:
        raise MissionError(f"no mission {name!r} is deployed", hint="`at mission list` shows those that are")
    if found.project != project:
        whose = f"project {found.project!r}" if found.project else "nobody that we know"
        raise MissionError(f"the mission {name!r} belongs to {whose}, not to {project!r}", hint="see AT_PROJECT")
    return found
