"""Plans carried out on a real Prefect server."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

import anomaly_times.scheduling.server as server_module
from anomaly_times.conventions import lease_name, lock_name, variable_name
from anomaly_times.deployed import DeployedMission, Pause
from anomaly_times.errors import MissionError, PrefectError, UsageError
from anomaly_times.mission import Mission
from anomaly_times.plan import Plan, Update
from anomaly_times.scheduling import sync
from anomaly_times.scheduling.adopt import find_handmade, remove_adopted
from anomaly_times.scheduling.server import PAGE, Lock, PrefectServer, connect
from anomaly_times.settings import PrefectApi, Settings
from tests import servers
from tests.prefect_bases import api, base_deployments, schedules
from tests.prefect_server import prefect_server as start_prefect

pytestmark = pytest.mark.servers


def clock() -> datetime:
    return datetime.now(UTC)


class Site:
    """One project on a server, and what a test wants of it."""

    def __init__(self, url: str, project: str) -> None:
        self.url, self.project = url, project
        self.bases = base_deployments(url)
        self.server = PrefectServer(url + "/api")

    def mission(self, name: str, **fields: Any) -> Mission:
        return Mission.model_validate({"name": f"{self.project}-{name}", "promql": "up", **fields})

    def apply(self, *missions: Mission, **options: Any) -> tuple[Plan, list[str]]:
        done: list[str] = []
        plan = sync.apply(
            self.server,
            missions,
            project=self.project,
            clock=clock,
            on_done=lambda what, whom: done.append(f"{what} {whom}"),
            **options,
        )
        return plan, done

    def plan(self, *missions: Mission, prune: bool = False) -> Plan:
        return sync.plan(self.server, missions, project=self.project, now=clock(), prune=prune)

    def variable(self, mission: Mission) -> dict[str, Any] | None:
        found = api(self.url, "GET", f"variables/name/{variable_name(mission.name)}")
        return None if found is None else dict(found)

    def schedules(self) -> dict[str, dict[str, Any]]:
        return {slug: s for slug, s in schedules(self.url).items() if slug.startswith(f"at:{self.project}:")}

    def first_runs(self) -> list[dict[str, Any]]:
        where = {"flow_runs": {"tags": {"all_": [f"project:{self.project}"]}}}
        return sorted((run["parameters"] for run in api(self.url, "POST", "flow_runs/filter", where)), key=str)


@pytest.fixture
def site(prefect_server: servers.Server, request: pytest.FixtureRequest) -> Iterator[Callable[[], Site]]:
    """`site()` gives a project of its own each time; all are cleaned up."""
    made: list[Site] = []

    def new() -> Site:
        name = f"p{abs(hash(request.node.name)) % 10**8:x}{len(made)}"
        made.append(Site(prefect_server.url, name))
        return made[-1]

    yield new
    for one in made:
        for found in one.server.read_state(one.project).found.values():
            if found.project == one.project:
                one.server.delete_mission(found.name)
        for schedule in one.schedules().values():
            one.server.delete_schedule(schedule["deployment"], schedule["id"])
        one.server.close()


def test_apply_makes_variables_schedules_and_first_forecasts(site: Callable[[], Site]) -> None:
    here = site()
    one, cron = here.mission("one"), here.mission("cron", detect={"cron": "*/5 * * * *"}, timezone="Europe/Berlin")
    plan, done = here.apply(one, cron)
    assert plan.counts["create"] == 2
    assert sorted(done)[:2] == [f"create {cron.name}", f"create {one.name}"]
    variable = here.variable(one)
    assert variable is not None
    slug = f"at:{here.project}:detect:1m:00"
    assert {"anomaly-times", f"project:{here.project}", f"pack:{slug}"} <= set(variable["tags"])
    made = here.schedules()
    assert made[slug]["parameters"] == {"pack": slug}
    assert made[slug]["active"] is True
    assert made[slug]["schedule"]["interval"] == 60.0
    [literal] = [s["schedule"] for s in made.values() if "cron" in s["schedule"]]
    assert (literal["cron"], literal["timezone"]) == ("*/5 * * * *", "Europe/Berlin")
    assert here.first_runs() == [{"mission": cron.name}, {"mission": one.name}]


def test_apply_twice_changes_nothing(site: Callable[[], Site]) -> None:
    here = site()
    missions = [here.mission("a"), here.mission("b", forecast={"every": "90s"}, isolated=True)]
    here.apply(*missions)
    before = [here.variable(m) for m in missions], here.schedules()
    plan, done = here.apply(*missions)
    assert (plan.empty, done) == (True, [])
    assert ([here.variable(m) for m in missions], here.schedules()) == before
    assert len(here.first_runs()) == 2


def test_one_changed_field_is_one_update(site: Callable[[], Site]) -> None:
    here = site()
    here.apply(here.mission("a"), here.mission("b"))
    others = here.variable(here.mission("b"))
    plan, done = here.apply(here.mission("a", forecast={"level": 99}), here.mission("b"))
    assert done == [f"update {here.mission('a').name}"]
    [update] = plan.of(Update)
    assert [(f.field, f.old, f.new) for f in update.fields] == [("forecast.level", None, 99.0)]
    assert here.variable(here.mission("b")) == others
    assert here.plan(here.mission("a", forecast={"level": 99}), here.mission("b")).empty


def test_prune_removes_just_that_and_nothing_of_a_second_project_or_of_people(site: Callable[[], Site]) -> None:
    here, there = site(), site()
    by_hand = {"schedule": {"interval": 3600}, "parameters": {"promql": "up", "model_type": "mstl"}}
    [made] = api(here.url, "POST", f"deployments/{here.bases['forecast']}/schedules", [by_hand])
    here.apply(here.mission("a"), here.mission("b", detect={"every": "5m"}))
    lease = lease_name(f"at:{here.project}:detect:5m:00")
    api(here.url, "POST", "variables/", {"name": lease, "value": {}})
    there.apply(there.mission("theirs", detect={"every": "5m"}))
    theirs = there.variable(there.mission("theirs")), there.schedules()
    _, done = here.apply(here.mission("a"), prune=True)
    assert done == [
        f"delete {here.mission('b').name}",
        f"delete schedule at:{here.project}:detect:5m:00",
    ]
    assert here.variable(here.mission("b")) is None
    assert api(here.url, "GET", f"variables/name/{lease}") is None
    assert (there.variable(there.mission("theirs")), there.schedules()) == theirs
    assert schedules(here.url)[made["id"]]["parameters"] == by_hand["parameters"]
    api(here.url, "DELETE", f"deployments/{here.bases['forecast']}/schedules/{made['id']}")


def test_a_name_of_another_project_stops_everything(site: Callable[[], Site]) -> None:
    here, there = site(), site()
    here.apply(here.mission("a"))
    with pytest.raises(MissionError, match=f"the project '{here.project}' holds a mission of that name"):
        there.apply(here.mission("a"), there.mission("fine"))
    assert there.variable(there.mission("fine")) is None


def test_a_variable_edited_by_hand_is_shown_and_put_right(site: Callable[[], Site]) -> None:
    here = site()
    one = here.mission("a")
    here.apply(one)
    before = here.variable(one)
    assert before is not None
    for value in ("nonsense", {**before["value"], "mission": {"name": one.name, "promql": "down"}}):
        api(here.url, "PATCH", f"variables/name/{before['name']}", {"value": value})
        [update] = here.plan(one).of(Update)
        assert update.drift
        here.apply(one)
        now = here.variable(one)
        assert now is not None
        assert now["value"]["mission"] == before["value"]["mission"]
        assert here.plan(one).empty


def test_a_variable_of_a_newer_version_is_left_alone(site: Callable[[], Site]) -> None:
    here = site()
    one = here.mission("a")
    here.apply(one)
    before = here.variable(one)
    assert before is not None
    newer = {**before["value"], "spec": 2}
    api(here.url, "PATCH", f"variables/name/{before['name']}", {"value": newer})
    with pytest.raises(MissionError, match="newer version"):
        here.apply(one)
    now = here.variable(one)
    assert now is not None
    assert now["value"] == newer


def test_a_schedule_that_was_paused_emptied_or_deleted_is_put_right(site: Callable[[], Site]) -> None:
    here = site()
    one = here.mission("a")
    here.apply(one)
    before = here.schedules()

    def by_hand(method: str, body: object = None) -> None:
        for schedule in before.values():
            now = here.schedules()[schedule["slug"]]
            api(here.url, method, f"deployments/{now['deployment']}/schedules/{now['id']}", body)

    # As the UI's switch does it, which empties the parameters too.
    by_hand("PATCH", {"active": False})
    assert {s.drift for s in here.plan(one).schedules} == {"its schedule is paused and has other parameters"}
    here.apply(one)
    assert {slug: s["parameters"] for slug, s in here.schedules().items()} == {slug: {"pack": slug} for slug in before}
    assert all(s["active"] for s in here.schedules().values())
    by_hand("DELETE")
    here.apply(one)
    assert {slug: s["schedule"] for slug, s in here.schedules().items()} == {
        slug: s["schedule"] for slug, s in before.items()
    }
    assert here.plan(one).empty


def test_a_plan_is_refused_when_the_world_moved(site: Callable[[], Site]) -> None:
    here = site()
    here.apply(here.mission("a"))
    plan = here.plan(here.mission("a", promql="x"))
    sync.pause(here.server, here.mission("a").name, Pause(None, "holiday"), project=here.project)
    with pytest.raises(PrefectError, match="has changed since this plan was made"):
        here.apply(*plan.wanted, expect=plan.fingerprint)
    assert here.plan(here.mission("a", promql="x")).counts["update"] == 1
    fresh = here.plan(here.mission("a", promql="x"))
    here.apply(*fresh.wanted, expect=fresh.fingerprint)


def test_a_pause_survives_apply_and_ends_by_resume(site: Callable[[], Site]) -> None:
    here = site()
    here.apply(here.mission("a"))
    name = here.mission("a").name
    until = datetime(2099, 1, 1, tzinfo=UTC)
    sync.pause(here.server, name, Pause(until, "why"), project=here.project)
    plan, _ = here.apply(here.mission("a", description="x"))
    assert [(d.mission.name, d.paused) for d in plan.paused] == [(name, Pause(until, "why"))]
    variable = here.variable(here.mission("a"))
    assert variable is not None
    assert "paused" in variable["tags"]
    sync.pause(here.server, name, None, project=here.project)
    assert here.plan(here.mission("a", description="x")).paused == []


def test_a_pause_keeps_what_was_edited_known_as_edited(site: Callable[[], Site]) -> None:
    here = site()
    one = here.mission("a")
    here.apply(one)
    before = here.variable(one)
    assert before is not None
    value = {**before["value"], "since": "2099-01-01T00:00:00+00:00", "novel": 1}
    api(here.url, "PATCH", f"variables/name/{before['name']}", {"value": value})
    sync.pause(here.server, one.name, Pause(None, "why"), project=here.project)
    sync.pause(here.server, one.name, None, project=here.project)
    after = here.variable(one)
    assert after is not None
    assert (after["value"], sorted(after["tags"])) == (value, sorted(before["tags"]))
    assert [update.drift for update in here.plan(one).of(Update)] == ["edited by hand"]
    here.apply(one)
    assert here.plan(one).empty


def test_delete_takes_one_mission_and_the_schedules_that_nobody_needs(site: Callable[[], Site]) -> None:
    here = site()
    here.apply(here.mission("a"), here.mission("b", detect={"every": "5m"}))
    sync.delete(here.server, here.mission("b").name, project=here.project)
    assert here.variable(here.mission("b")) is None
    assert sorted(here.schedules()) == [f"at:{here.project}:detect:1m:00", f"at:{here.project}:forecast:1h:00"]
    with pytest.raises(MissionError, match="is deployed"):
        sync.delete(here.server, here.mission("b").name, project=here.project)


def test_what_is_not_ours_is_neither_paused_nor_run_nor_deleted(site: Callable[[], Site]) -> None:
    here, there = site(), site()
    here.apply(here.mission("a"))
    name = here.mission("a").name
    for act in (
        lambda: sync.pause(there.server, name, Pause(), project=there.project),
        lambda: sync.run_now(there.server, name, project=there.project, now=clock()),
        lambda: sync.delete(there.server, name, project=there.project),
    ):
        with pytest.raises(MissionError, match=f"belongs to project '{here.project}'"):
            act()
    assert here.plan(here.mission("a")).empty


def test_run_starts_a_forecast_and_a_detection_each_time(site: Callable[[], Site]) -> None:
    here = site()
    here.apply(here.mission("a"))
    name = here.mission("a").name
    for _ in range(2):
        sync.run_now(here.server, name, project=here.project, now=clock())
    assert here.first_runs() == [{"mission": name}] * 5


def test_many_new_missions_share_one_first_forecast(site: Callable[[], Site]) -> None:
    here = site()
    here.apply(*[here.mission(f"m{i}") for i in range(8)])
    names = [here.mission(f"m{i}").name for i in range(8)]
    assert here.first_runs() == [{"mission": names}]
    # Neither fewer missions nor another cadence start it again.
    here.apply(*[here.mission(f"m{i}", forecast={"every": "2h"}) for i in range(7)], prune=True)
    assert here.first_runs() == [{"mission": names}]
    # A run that failed does not count.
    where = {"flow_runs": {"tags": {"all_": [f"project:{here.project}"]}}}
    [run] = api(here.url, "POST", "flow_runs/filter", where)
    api(here.url, "POST", f"flow_runs/{run['id']}/set_state", {"state": {"type": "CRASHED"}, "force": True})
    here.apply(*[here.mission(f"m{i}", forecast={"every": "2h"}) for i in range(7)])
    assert sorted(here.first_runs(), key=str) == sorted([{"mission": names}, {"mission": names[:7]}], key=str)


def test_missions_are_all_read_while_others_come_and_go(site: Callable[[], Site]) -> None:
    here = site()
    missions = [here.mission(f"m{i:03d}") for i in range(420)]
    # Leases sort before all missions, and each run removes and makes one.
    passing = [here.mission(f"a{i}") for i in range(3)]
    here.apply(*missions)
    over, turns = threading.Event(), [0]

    def churn() -> None:
        other, packs = PrefectServer(here.url + "/api"), ("at:x:forecast:1h:00", "at:x:detect:1m:00")
        with other:
            while not over.is_set():
                turns[0] += 1
                for name in (lease_name(f"{here.project}-{turns[0] % 5}"), lock_name(f"{here.project}-x")):
                    other._ask("POST", "variables/", {"name": name, "value": {}})
                    other._gone(f"variables/name/{name}")
                one = DeployedMission(passing[turns[0] % 3], here.project, packs, clock())
                other.create_mission(one)
                other.delete_mission(one.mission.name)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        wanted = {mission.name for mission in missions}
        lost = [wanted - set(here.server.read_state(here.project).found) for _ in range(8)]
    finally:
        over.set()
        thread.join()
    assert lost == [set()] * 8
    assert turns[0] > 5


def test_a_list_whose_pages_do_not_join_is_read_again() -> None:
    rows = [{"id": f"{i:03d}", "name": f"at_{i:03d}"} for i in range(450)]
    removed: list[int] = []

    def handle(request: httpx.Request) -> httpx.Response:
        asked = json.loads(request.content)
        if request.url.path.endswith("count"):
            return httpx.Response(200, json=len(rows))
        page = rows[asked["offset"] : asked["offset"] + asked["limit"]]
        if len(removed) < 4:
            removed.append(1)
            del rows[0]  # after a page was read, so that the next begins one too late
        return httpx.Response(200, json=page)

    with PrefectServer("http://prefect/api", transport=httpx.MockTransport(handle)) as server:
        assert [row["id"] for row in server._tagged(["x"])] == [f"{i:03d}" for i in range(4, 450)]


def test_a_list_that_never_stands_still_is_an_error() -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("count"):
            return httpx.Response(200, json=10)
        return httpx.Response(200, json=[{"id": str(i), "name": f"at_{i}"} for i in range(PAGE)])

    with (
        PrefectServer("http://prefect/api", transport=httpx.MockTransport(handle)) as server,
        pytest.raises(PrefectError, match="change while they are read"),
    ):
        server.read_state("p")


def test_two_applies_at_once_do_not_mix(site: Callable[[], Site]) -> None:
    here = site()
    failed: list[BaseException] = []

    def one(promql: str) -> None:
        try:
            here.apply(*[here.mission(f"m{i}", promql=promql) for i in range(12)])
        except BaseException as exc:  # noqa: BLE001
            failed.append(exc)

    threads = [threading.Thread(target=one, args=(promql,)) for promql in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    values = [here.variable(here.mission(f"m{i}")) for i in range(12)]
    assert len({value["value"]["mission"]["promql"] for value in values if value}) == 1
    assert sum(value is not None for value in values) == 12
    assert len(here.schedules()) == 2
    assert api(here.url, "GET", f"variables/name/{lock_name(here.project)}") is None


def test_a_lock_that_is_held_is_named_and_an_old_one_is_taken_over(
    site: Callable[[], Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = site()
    api(here.url, "POST", "variables/", {"name": lock_name(here.project), "value": {"owner": "Ada"}})
    with pytest.raises(PrefectError, match="is being changed by Ada"):
        here.apply(here.mission("a"), patience=timedelta(0))
    monkeypatch.setattr(server_module, "_HELD_FOR", 1.0)
    plan, _ = here.apply(here.mission("a"), patience=timedelta(seconds=20))
    assert plan.counts["create"] == 1


def test_a_lock_is_renewed_and_its_loss_stops_what_is_going_on(
    site: Callable[[], Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = site()
    monkeypatch.setattr(server_module, "_HELD_FOR", 0.4)
    with here.server.lock(here.project) as lock:
        first = api(here.url, "GET", f"variables/name/{lock_name(here.project)}")
        time.sleep(0.5)
        again = api(here.url, "GET", f"variables/name/{lock_name(here.project)}")
        assert again["id"] == first["id"]
        assert again["updated"] > first["updated"]
        lock.check()
        api(here.url, "DELETE", f"variables/name/{lock_name(here.project)}")
        time.sleep(0.5)
        with pytest.raises(PrefectError, match="another process took over"):
            lock.check()


def test_a_lock_that_was_lost_stays_lost_and_an_old_one_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    answers_with = [500, 404, 500, 204]

    def handle(request: httpx.Request) -> httpx.Response:
        # In pieces, as from a network: only then it is known how long it took.
        return httpx.Response(answers_with.pop(0), content=iter([b'{"detail": "x"}']))

    monkeypatch.setattr(server_module, "_HELD_FOR", 60.0)
    with PrefectServer("http://prefect/api", transport=httpx.MockTransport(handle)) as server:
        lock = Lock(server, "id", {}, seen=time.monotonic())
        lock.check()
        assert len(answers_with) == 4  # it is young: nobody is asked
        lock = Lock(server, "id", {}, seen=time.monotonic() - 61)
        with pytest.raises(PrefectError, match="500"):
            lock.check()
        for _ in range(3):
            with pytest.raises(PrefectError, match="another process took over"):
                lock.check()
        assert answers_with == [500, 204]
        fresh = Lock(server, "id", {}, seen=time.monotonic() - 61)
        answers_with[:] = [204]
        fresh.check()
        fresh.check()
        assert answers_with == []


def test_schedules_made_by_hand_become_missions_and_go_when_those_are_deployed(site: Callable[[], Site]) -> None:
    here = site()
    promql = f'up{{project="{here.project}"}}'
    by_hand = {
        "forecast": {"schedule": {"interval": 7200}, "parameters": {"promql": promql, "model_type": "profile"}},
        "detect": {"schedule": {"cron": "*/5 * * * *", "timezone": "UTC"}, "parameters": {"promql": promql}},
    }
    bases = {kind: f"deployments/{here.bases[kind]}/schedules" for kind in by_hand}
    ids = {kind: api(here.url, "POST", bases[kind], [body])[0]["id"] for kind, body in by_hand.items()}
    typo = {"schedule": {"interval": 60}, "parameters": {"promql": promql, "step": "fast"}}
    [broken] = api(here.url, "POST", bases["detect"], [typo])

    adoption = find_handmade(here.server.base_deployments(), Settings())
    [mission] = [m for m in adoption.missions.values() if m.promql == promql]
    assert mission.name.startswith("q-")
    assert (mission.forecast.every, mission.forecast.model.type) == (timedelta(hours=2), "profile")
    assert mission.detect.cron == "*/5 * * * *"
    assert any(broken["id"] in line and "step" in line for line in adoption.left)

    assert remove_adopted(here.server, adoption, project=here.project) == []
    here.apply(mission)
    assert remove_adopted(here.server, adoption, project=here.project) == [mission.name]
    left = schedules(here.url)
    assert not set(ids.values()) & set(left)
    assert broken["id"] in left
    api(here.url, "DELETE", f"{bases['detect']}/{broken['id']}")


@pytest.mark.parametrize(
    ("other", "word"),
    [
        ({"promql": "down"}, "another promql"),
        ({"promql": "up", "step": "5m"}, "another step"),
        ({"promql": "up", "source": "b"}, "another source"),
        ({"promql": "up", "labels": {"team": "x"}}, "another labels"),
        ({"promql": "up", "model_type": "mstl"}, "the second one"),
    ],
)
def test_schedules_that_share_only_a_name_are_neither_merged_nor_removed(
    site: Callable[[], Site], other: dict[str, Any], word: str
) -> None:
    here = site()
    settings = Settings.model_validate(
        {"source": "a", "sources": {"a": {"url": "http://a:1"}, "b": {"url": "http://b:1"}}}
    )
    name = here.mission("api").name
    path = f"deployments/{here.bases['forecast']}/schedules"
    made = [
        api(here.url, "POST", path, [{"schedule": {"interval": 3600}, "parameters": {"name": name, **given}}])[0]["id"]
        for given in ({"promql": "up"}, other)
    ]
    adoption = find_handmade(here.server.base_deployments(), settings)
    assert adoption.missions[name].promql == "up"
    [kept] = adoption.schedules[name]
    [rest] = set(made) - {kept.id}
    assert [line for line in adoption.left if rest in line and word in line]
    # Deployed under that name is something else.
    here.apply(here.mission("api", promql="sum(up)"))
    assert remove_adopted(here.server, adoption, project=here.project) == []
    assert set(made) <= set(schedules(here.url))
    here.apply(adoption.missions[name])
    assert remove_adopted(here.server, adoption, project=here.project) == [name]
    assert set(made) & set(schedules(here.url)) == {rest}
    api(here.url, "DELETE", f"{path}/{rest}")


@pytest.mark.slow
def test_a_server_that_dies_halfway_is_completed_by_a_rerun_with_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_HELD_FOR", 5.0)
    server = start_prefect(tmp_path)
    try:
        here = Site(server.url, "shop")
        missions = [here.mission(f"m{i:03d}") for i in range(60)]
        done: list[str] = []

        def die(what: str, whom: str) -> None:
            done.append(whom)
            if len(done) == 20:
                server.kill()

        with pytest.raises(PrefectError, match="does not answer") as caught:
            sync.apply(here.server, missions, project="shop", clock=clock, on_done=die)
        assert "apply again" in caught.value.hint
        server.start()
        plan, again = here.apply(*missions, patience=timedelta(seconds=90))
        assert 0 < plan.counts["create"] < 41
        assert plan.counts["create"] + plan.counts["unchanged"] == 60
        assert sorted(here.schedules()) == ["at:shop:detect:1m:00", "at:shop:forecast:1h:00"]
        assert here.plan(*missions).empty
        assert here.apply(*missions)[1] == []
        # Those of the first attempt, and those of the second: each once.
        started = [name for run in here.first_runs() for name in run["mission"]]
        assert sorted(started) == sorted(mission.name for mission in missions)
        assert any("first forecast" in line for line in again)
        here.server.close()
    finally:
        server.stop()


def test_a_server_that_is_away_or_no_prefect_is_told(
    vm_server: servers.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_AWAY_FOR", 0.3)
    nobody = PrefectServer(f"http://127.0.0.1:{servers.free_port()}/api")
    with nobody, pytest.raises(PrefectError, match="does not answer") as caught:
        nobody.read_state("p")
    assert "at up" in caught.value.hint
    with PrefectServer(vm_server.url) as other, pytest.raises(PrefectError, match="that is no API of Prefect"):
        other.read_state("p")


def answers(*codes: int) -> Callable[[httpx.Request], httpx.Response]:
    """A server that gives these codes in turn, then what it was asked for."""
    left = list(codes)

    def handle(request: httpx.Request) -> httpx.Response:
        if left:
            return httpx.Response(left.pop(0), json={"detail": "database is locked"})
        return httpx.Response(200, json=0 if request.url.path.endswith("count") else [])

    return handle


def test_a_busy_server_is_asked_again() -> None:
    handle = answers(503, 503, 429)
    with PrefectServer("http://prefect/api", transport=httpx.MockTransport(handle)) as server:
        assert server._tagged(["anomaly-times"]) == []


@pytest.mark.parametrize("code", [401, 403])
def test_refused_credentials_are_told_without_the_credentials(code: int) -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(code, json={"detail": "Unauthorized"}))
    server = PrefectServer("http://prefect/api", auth_string="me:secret", transport=transport)
    with server, pytest.raises(PrefectError, match="refuses our credentials") as caught:
        server.read_state("p")
    assert "secret" not in caught.value.message + caught.value.hint + repr(caught.value.__cause__)
    assert "PREFECT_API_AUTH_STRING" in caught.value.hint


BASIC = "Basic bWU6cGFzcw=="  # me:pass
CLOUD = {"PREFECT_API_URL": "http://cloud/api", "PREFECT_API_KEY": "cloud"}


@pytest.mark.parametrize(
    ("settings", "environment", "profile", "header"),
    [
        # A server that the settings name gets their own credentials, whatever else is set.
        ({"api_url": "http://s/api", "api_key": "k"}, {}, {}, "Bearer k"),
        ({"api_url": "http://s/api", "auth_string": "me:pass"}, {}, {}, BASIC),
        ({"api_url": "http://s/api", "api_key": "k"}, {"PREFECT_API_AUTH_STRING": "me:pass"}, CLOUD, "Bearer k"),
        ({"api_key": "k"}, {"PREFECT_API_URL": "http://e/api", "PREFECT_API_AUTH_STRING": "me:pass"}, {}, "Bearer k"),
        # Prefect's own go to the server that Prefect's own settings name, and to no other.
        ({"api_url": "http://evil/api"}, {}, CLOUD, ""),
        ({"api_url": "http://evil/api"}, CLOUD, {}, ""),
        ({"api_url": "http://evil/api"}, {"PREFECT_API_AUTH_STRING": "me:pass"}, CLOUD, ""),
        ({"api_url": "http://cloud/api"}, {}, CLOUD, "Bearer cloud"),
        ({"api_url": "http://cloud/api/"}, CLOUD, {}, "Bearer cloud"),
        ({}, {"PREFECT_API_URL": "http://e/api"}, CLOUD, ""),
        ({}, {"PREFECT_API_URL": "http://e/api", "PREFECT_API_AUTH_STRING": "me:pass"}, CLOUD, BASIC),
        ({}, {}, CLOUD, "Bearer cloud"),
        ({}, {"PREFECT_API_AUTH_STRING": "me:pass"}, CLOUD, BASIC),
        ({}, {"PREFECT_API_KEY": "mine"}, {**CLOUD, "PREFECT_API_AUTH_STRING": "me:pass"}, "Bearer mine"),
    ],
)
def test_credentials_go_to_the_server_that_they_were_set_for(
    settings: dict[str, str],
    environment: dict[str, str],
    profile: dict[str, str],
    header: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    lines = [f'{name} = "{value}"' for name, value in profile.items()]
    (tmp_path / "profiles.toml").write_text("\n".join(['active = "home"', "[profiles.home]", *lines]))
    seen: list[str] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("authorization", ""))
        return httpx.Response(404, json={})

    monkeypatch.setattr(
        server_module.httpx, "Client", _with_transport(server_module.httpx.Client, httpx.MockTransport(handle))
    )
    with connect(PrefectApi.model_validate(settings)) as server:
        assert server.read_mission("a") is None
    assert seen == [header]


def _with_transport(kind: Callable[..., httpx.Client], transport: httpx.MockTransport) -> Callable[..., httpx.Client]:
    return lambda **options: kind(**{**options, "transport": transport})


def test_the_servers_address_comes_from_settings_environment_or_prefects_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    with pytest.raises(UsageError, match="no Prefect server is set"):
        connect(PrefectApi())
    profiles = '[profiles.home]\nPREFECT_API_URL = "http://profile/api"\n'
    (tmp_path / "profiles.toml").write_text('active = "home"\n' + profiles)
    assert str(connect(PrefectApi()).url) == "http://profile/api"
    monkeypatch.setenv("PREFECT_API_URL", "http://environment/api")
    assert str(connect(PrefectApi()).url) == "http://environment/api"
    assert str(connect(PrefectApi(api_url="http://settings/api")).url) == "http://settings/api"
    (tmp_path / "profiles.toml").write_text("what is this")
    monkeypatch.delenv("PREFECT_API_URL")
    with pytest.raises(UsageError, match="is no TOML"):
        connect(PrefectApi())


def test_the_first_error_stops_what_has_not_begun() -> None:
    begun: list[int] = []

    def act(n: int) -> None:
        begun.append(n)
        time.sleep(0.01)
        if n == 3:
            raise PrefectError("no", hint="")

    with (
        PrefectServer("http://prefect/api") as server,
        pytest.raises(PrefectError, match="no"),
    ):
        server.for_each(act, range(1000))
    assert len(begun) < 100


def test_a_created_mission_whose_answer_was_lost_is_no_error_and_another_one_is() -> None:
    kept: dict[str, Any] = {}

    def handle(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            kept.setdefault("value", json.loads(request.content)["value"])
            kept["tags"] = json.loads(request.content)["tags"]
            return httpx.Response(409, json={"detail": "exists"})
        return httpx.Response(200, json=kept)

    packs = ("at:p:forecast:1h:00", "at:p:detect:1m:00")
    one = DeployedMission(Mission(name="a", promql="up"), "p", packs, clock())
    with PrefectServer("http://prefect/api", transport=httpx.MockTransport(handle)) as server:
        server.create_mission(one)
        kept["value"] = "of somebody else"
        with pytest.raises(PrefectError, match="exists"):
            server.create_mission(one)
