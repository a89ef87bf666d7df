from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import msgspec
import numpy as np
import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.objects import State as RunState
from prefect.exceptions import ParameterTypeError
from prefect.flow_engine import run_flow_async

from anomaly_times.conventions import lease_name, name_for_query, pack_slug, variable_name
from anomaly_times.deployed import DeployedMission, Pause
from anomaly_times.durations import EPOCH
from anomaly_times.errors import MissionError, NoSeriesError, StoreUnavailableError, UsageError
from anomaly_times.mission import Mission
from anomaly_times.panel import Grid, Labels, Panel
from anomaly_times.passes import forecast_pass, write_forecasts
from anomaly_times.scheduling import flows, lease
from anomaly_times.scheduling.bases import deploy_bases
from anomaly_times.scheduling.flows import detection, forecasting
from anomaly_times.scheduling.handmade import mission_by_hand
from anomaly_times.scheduling.server import PrefectServer
from anomaly_times.settings import Settings, source_for_url
from anomaly_times.stores import open_store
from anomaly_times.stores.prometheus import PrometheusStore
from anomaly_times.testing import MemoryStore
from tests import servers
from tests.prefect_bases import base_deployments
from tests.prefect_server import connected

# Prefect leaves sockets to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")

STEP = timedelta(minutes=1)
SETTINGS = Settings(sources={"main": source_for_url("http://metrics:8428")})


def mission(name: str, promql: str = "load", **fields: Any) -> Mission:
    fields.setdefault("forecast", {"lookback": "1d", "model": "seasonal_naive"})
    return Mission.model_validate({"name": name, "promql": promql, **fields})


# -- parameters --------------------------------------------------------------------------------------------------


def test_both_flows_take_the_same_parameters() -> None:
    assert forecasting.parameters == detection.parameters
    assert forecasting.name == "forecasting"
    assert detection.name == "detection"
    assert forecasting.isasync


@pytest.mark.parametrize("ours", [forecasting, detection], ids=["forecasting", "detection"])
def test_an_unknown_parameter_is_named_with_what_was_meant(ours: Any) -> None:
    assert ours.validate_parameters({"promql": "up", "model_type": "lgbm"})["model_type"] == "lgbm"
    with pytest.raises(ParameterTypeError, match="there is no parameter 'promq'; did you mean 'promql'"):
        ours.validate_parameters({"promq": "up"})
    with pytest.raises(ParameterTypeError, match="there is no parameter 'model-type'; did you mean 'model_type'"):
        ours.validate_parameters({"promql": "up", "model-type": "lgbm"})
    with pytest.raises(ParameterTypeError, match="there is no parameter 'xyz'; there are: promql, mission, pack"):
        ours.validate_parameters({"promql": "up", "xyz": 1})
    with pytest.raises(ParameterTypeError, match="level"):
        ours.validate_parameters({"promql": "up", "level": "high"})


def test_a_query_by_hand_has_the_same_name_whatever_else_is_said() -> None:
    plain = mission_by_hand({"promql": "up"}, SETTINGS)
    assert plain.name == name_for_query("main", "up")
    assert (
        mission_by_hand({"promql": " up ", "model_type": "lgbm", "level": 95.0, "source": "main"}, SETTINGS).name
        == plain.name
    )
    assert mission_by_hand({"promql": "up", "name": "mine"}, SETTINGS).name == "mine"


def test_defaults_of_the_flows_are_those_of_a_mission() -> None:
    defaults = {name: schema.get("default") for name, schema in forecasting.parameters.properties.items()}
    by_hand = mission_by_hand({**defaults, "promql": "up"}, SETTINGS)
    assert by_hand == Mission(name=by_hand.name, promql="up")


def test_every_parameter_reaches_the_mission() -> None:
    top = {"step": "5m", "offset": "1m", "timezone": "Europe/Berlin", "season": ["1d"], "max_series": 7}
    forecast = {"lookback": "3d", "horizon": "3h", "every": "2h", "level": 95.0, "interval_scale": 2.0}
    detect = {"direction": "above", "min_deviation": [1.0, 2.0], "min_relative_deviation": "20%"}
    detect |= {"valid_range": [0.0, 5.0], "missing": "zero", "catch_up": "2h"}
    detect |= {"evidence": "point"}
    given = {**top, "labels": {"team": "a"}, **forecast, **detect, "model_type": "mstl", "model_params": {"lags": 3}}
    rest = {"promql", "mission", "pack", "name", "source", "alerts_per_week"}
    assert {*rest, *given} == set(forecasting.parameters.properties)
    assert mission_by_hand({"promql": "up", **given}, SETTINGS) == Mission.model_validate(
        {
            "name": name_for_query("main", "up"),
            "promql": "up",
            **top,
            "labels": {"team": "a"},
            "forecast": {**forecast, "model": {"type": "mstl", "lags": 3}},
            "detect": detect,
        }
    )


def test_a_budget_goes_in_place_of_a_level() -> None:
    assert mission_by_hand({"promql": "up", "alerts_per_week": 2.0}, SETTINGS).detect.alerts_per_week == 2
    with pytest.raises(MissionError, match="say two things"):
        mission_by_hand({"promql": "up", "alerts_per_week": 2.0, "level": 99.0}, SETTINGS)
    with pytest.raises(MissionError, match=r"^alerts_per_week: must be more than 0"):
        mission_by_hand({"promql": "up", "alerts_per_week": 0.0}, SETTINGS)


def test_a_value_that_makes_no_sense_is_named_as_its_parameter() -> None:
    with pytest.raises(MissionError, match=r"^lookback: .*duration"):
        mission_by_hand({"promql": "up", "lookback": "long"}, SETTINGS)
    with pytest.raises(UsageError, match="no source 'other'"):
        mission_by_hand({"promql": "up", "source": "other"}, SETTINGS)


def by_schedule(slug: str | None) -> FlowRun:
    creator = {"id": uuid4(), "type": "SCHEDULE", "display_value": slug or "IntervalSchedule"}
    return FlowRun.model_validate({"flow_id": uuid4(), "created_by": creator})


NOTHING: dict[str, Any] = {"promql": None, "mission": None, "pack": None}
SLUG = "at:shop:detect:1m:00"


def test_a_pack_whose_schedule_lost_its_parameters_is_known_by_its_slug() -> None:
    assert flows._subject(NOTHING, "detect", by_schedule(SLUG)) == ("pack", [SLUG])
    # What is said counts more, and only our own slugs say something.
    assert flows._subject({**NOTHING, "promql": "up"}, "detect", by_schedule(SLUG)) == ("promql", ["up"])
    for run in (by_schedule("nightly"), by_schedule(None), FlowRun(flow_id=uuid4())):
        with pytest.raises(UsageError, match="neither `promql` nor `mission` nor `pack`"):
            flows._subject(NOTHING, "detect", run)


def test_a_run_works_on_one_thing_of_its_own_kind() -> None:
    run = FlowRun(flow_id=uuid4())
    with pytest.raises(UsageError, match="promql and pack say two things"):
        flows._subject({**NOTHING, "promql": "up", "pack": SLUG}, "detect", run)
    with pytest.raises(UsageError, match="is no forecast pack"):
        flows._subject({**NOTHING, "pack": SLUG}, "forecast", run)
    for nothing in ({"promql": "  "}, {"mission": []}):
        with pytest.raises(UsageError, match="neither"):
            flows._subject({**NOTHING, **nothing}, "detect", run)
    assert flows._subject({**NOTHING, "mission": ["a", " b"]}, "detect", run) == ("mission", ["a", "b"])


# -- runs, on a real Prefect server --------------------------------------------------------------------------------


@dataclass
class World:
    """A Prefect server, and metrics in memory that the flows find instead of the settings' source."""

    server: PrefectServer
    store: MemoryStore
    url: str

    def run(self, flow: Any, **parameters: Any) -> RunState[Any]:
        return asyncio.run(flow(**parameters, return_state=True))

    def deploy(self, *missions: Mission, since: datetime = EPOCH, pack: str = "00", **pauses: Pause) -> tuple[str, str]:
        """The slugs of the forecast and the detect pack that these missions are in."""
        slugs = pack_slug("flows", "forecast", "1h", pack), pack_slug("flows", "detect", "1m", pack)
        for each in missions:
            self.server.create_mission(DeployedMission(each, "flows", slugs, since, pauses.get(each.name)))
        return slugs

    def forecast_before(self, *missions: Mission) -> None:
        """Forecasts from half an hour ago, so that there is something to score."""
        past = datetime.now(UTC) - timedelta(minutes=30)
        stores = {"": self.store}
        results, _ = write_forecasts(forecast_pass(missions, stores, now=past), stores)
        assert [result.error for result in results] == [None] * len(missions)

    def scored(self, name: str) -> int:
        grid = Grid.ending(datetime.now(UTC), STEP, 120)
        found = self.store.read_scores([mission(name)], grid)
        return int(np.isfinite(found[name].y).sum()) if name in found else 0


@pytest.fixture
def world(prefect_server: servers.Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[World]:
    grid = Grid.ending(datetime.now(UTC), STEP, 3 * 1440)
    y = 100 + np.random.default_rng(1).normal(0, 1, (2, grid.n))
    y[1, -3:] = 200
    panel = Panel(tuple(Labels.of({"__name__": "load", "host": host}) for host in "ab"), grid, y)
    store = MemoryStore({"load": panel, "down": StoreUnavailableError("metrics are away")})
    monkeypatch.setattr(flows, "open_store", lambda *_, **__: store)
    monkeypatch.chdir(tmp_path)
    with connected(prefect_server) as url, PrefectServer(url) as server:
        yield World(server, store, url)


def ended(state: RunState[Any]) -> tuple[str, str]:
    return str(state.type.value), str(state.name)


@pytest.mark.servers
@pytest.mark.slow
def test_a_query_by_hand_is_forecast_and_then_scored(world: World) -> None:
    forecast = world.run(forecasting, promql="load", model_type="seasonal_naive")
    assert ended(forecast) == ("COMPLETED", "Completed")
    assert forecast.message == "1 mission forecast, 720 samples stored"
    name = name_for_query("http://localhost:8428", "load")
    world.forecast_before(mission(name))
    scores = world.run(detection, promql="load", model_type="lgbm")
    assert ended(scores) == ("COMPLETED", "Completed")
    assert f'worst scores: {name}{{__name__="load",host="b"}}' in (scores.message or "")
    assert world.scored(name) > 0
    assert world.store.closed


@pytest.mark.servers
@pytest.mark.slow
def test_a_run_that_cannot_work_is_failed_with_a_word(world: World) -> None:
    for parameters, word in [
        ({}, "neither `promql` nor `mission` nor `pack`"),
        ({"mission": "flows-gone"}, "no mission flows-gone is deployed"),
        ({"pack": "at:flows:detect:1m:99"}, "no deployed mission is in the pack at:flows:detect:1m:99"),
        ({"promql": "load", "lookback": "long"}, "lookback: "),
        ({"promql": "load", "source": "nowhere"}, "no source 'nowhere'"),
        ({"promql": "down"}, "metrics are away"),
    ]:
        state = world.run(detection, **parameters)
        assert ended(state) == ("FAILED", "Failed")
        assert word in (state.message or "")


@pytest.mark.servers
@pytest.mark.slow
@pytest.mark.parametrize(
    ("edit", "word"),
    [
        ({"mission": {"name": "flows-other", "promql": "load"}}, "holds the mission 'flows-other'"),
        ({"paused": {"until": "2099-01-01T00:00:00", "reason": ""}}, "a time without a zone"),
    ],
)
def test_a_variable_edited_by_hand_fails_that_mission_alone(world: World, edit: dict[str, Any], word: str) -> None:
    place = f"e{len(edit)}{len(word)}"
    good, bad, fine = (mission(f"flows-{name}-{place}") for name in ("good", "bad", "fine"))
    forecasts, _ = world.deploy(good, bad, fine, pack=place)
    path = f"variables/name/{variable_name(bad.name)}"
    value = world.server._ask("GET", path)["value"]
    world.server._ask("PATCH", path, {"value": {**value, **edit}})
    alone = world.run(forecasting, mission=bad.name)
    assert ended(alone) == ("FAILED", "Failed")
    assert word in (alone.message or "")
    state = world.run(forecasting, pack=forecasts)
    assert ended(state) == ("COMPLETED", "Partial")
    assert (state.message or "").endswith(f"1 failed: {bad.name}")


@pytest.mark.servers
@pytest.mark.slow
def test_one_failure_leaves_a_pack_partial_and_half_of_them_fail_it(world: World) -> None:
    good, paused, over, bad = (mission(f"flows-{name}", promql="load") for name in ("good", "paused", "over", "bad"))
    past = datetime.now(UTC) - timedelta(minutes=1)
    pauses = {paused.name: Pause(None, "work"), over.name: Pause(past, "over")}
    forecasts, scores = world.deploy(good, paused, over, bad, **pauses)
    world.server._ask("PATCH", f"variables/name/{variable_name(bad.name)}", {"value": "nonsense"})

    state = world.run(forecasting, pack=forecasts)
    assert ended(state) == ("COMPLETED", "Partial")
    assert "2 missions forecast" in (state.message or "")
    assert "1 paused" in (state.message or "")
    assert state.message is not None
    assert state.message.endswith("1 failed: flows-bad")
    world.forecast_before(good, paused, over)
    assert ended(world.run(detection, pack=scores)) == ("COMPLETED", "Partial")
    assert world.scored(good.name) > 0
    assert world.scored(over.name) > 0
    assert world.scored(paused.name) == 0

    table = world.server._ask("GET", "artifacts/forecast-missions/latest")
    rows = {row["mission"]: row for row in msgspec.json.decode(table["data"])}
    assert set(rows) == {good.name, over.name, bad.name}
    assert "holds no mission" in rows[bad.name]["error"]
    assert rows[good.name]["series"] == 2

    world.server.update_mission(DeployedMission(mission(good.name, promql="down"), "flows", (forecasts, scores), EPOCH))
    state = world.run(forecasting, pack=forecasts)
    assert ended(state) == ("FAILED", "Failed")
    assert "2 failed" in (state.message or "")


@pytest.mark.servers
@pytest.mark.slow
def test_a_pack_that_runs_is_left_alone_until_its_lease_is_over(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    forecasts, _ = world.deploy(mission("flows-lease"), pack="01")

    async def meanwhile() -> tuple[str, str]:
        async with get_client() as client, lease.hold(client, forecasts, run="first") as held:
            assert not held.refused
            return ended(await forecasting(pack=forecasts, return_state=True))

    monkeypatch.setattr(flows, "_PATIENCE", timedelta(0))
    assert asyncio.run(meanwhile()) == ("COMPLETED", "Skipped")
    assert ended(world.run(forecasting, pack=forecasts)) == ("COMPLETED", "Completed")
    # A worker that is killed neither renews its lease nor gives it back.
    name = lease_name(forecasts)
    over = {"pack": forecasts, "run": "killed", "until": (datetime.now(UTC) - STEP).isoformat(), "done": None}
    world.server._ask("PATCH", f"variables/name/{name}", {"value": over})
    assert ended(world.run(forecasting, pack=forecasts)) == ("COMPLETED", "Completed")
    left = world.server._ask("GET", f"variables/name/{name}")["value"]
    assert left["until"] is None
    assert datetime.fromisoformat(left["done"]) > datetime.now(UTC) - STEP


@pytest.mark.servers
@pytest.mark.slow
def test_a_lease_goes_to_one_of_many_and_covers_the_slots_before_it(world: World) -> None:
    slug = pack_slug("flows", "detect", "1m", "02")
    now = datetime.now(UTC)

    async def race() -> list[str]:
        async with get_client() as client:

            async def one(i: int) -> str:
                async with lease.hold(client, slug, run=f"run-{i}") as held:
                    await asyncio.sleep(0 if held.refused else 2)
                    return held.refused

            return list(await asyncio.gather(*(one(i) for i in range(6))))

    async def turn(due: datetime | None, done: datetime | None) -> str:
        async with get_client() as client, lease.hold(client, slug, run="turn", due=due) as held:
            held.done = done or held.done
            return held.refused

    assert sorted(map(bool, asyncio.run(race()))) == [False] + 5 * [True]
    assert asyncio.run(turn(now, now)) == ""
    assert "after this run was due" in asyncio.run(turn(now - STEP, None))
    assert asyncio.run(turn(None, None)) == ""
    assert asyncio.run(turn(now + STEP, None)) == ""


@pytest.mark.servers
@pytest.mark.slow
def test_a_run_that_was_asked_for_waits_for_its_pack(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_PAUSE", 0.2)
    forecasts, _ = world.deploy(mission("flows-patient"), pack="04")

    async def meanwhile() -> tuple[str, str]:
        async with get_client() as client, lease.hold(client, forecasts, run="first"):
            waiting = asyncio.create_task(forecasting(pack=forecasts, return_state=True))
            await asyncio.sleep(1.5)
            assert not waiting.done()
        return ended(await waiting)

    assert asyncio.run(meanwhile()) == ("COMPLETED", "Completed")


@pytest.mark.servers
@pytest.mark.slow
def test_a_lease_is_renewed_while_it_is_held(world: World) -> None:
    slug = pack_slug("flows", "detect", "1m", "03")

    async def long() -> str:
        async with get_client() as client:
            short = lease.hold(client, slug, run="long", lease=timedelta(seconds=1.5))
            async with short, AsyncExitStack() as later:
                await asyncio.sleep(2.5)
                other = await later.enter_async_context(lease.hold(client, slug, run="other"))
                return other.refused

    assert "running already, in long" in asyncio.run(long())


@pytest.mark.servers
@pytest.mark.slow
def test_a_run_of_several_missions_works_on_those_alone(world: World) -> None:
    one, two, three = (mission(f"flows-several-{i}") for i in range(3))
    world.deploy(one, two, three, pack="05")
    state = world.run(forecasting, mission=[one.name, three.name])
    assert (ended(state), state.message) == (
        ("COMPLETED", "Completed"),
        "2 missions forecast, 1,440 samples stored",
    )
    state = world.run(forecasting, mission=[one.name, three.name, "flows-nobody"])
    assert ended(state) == ("COMPLETED", "Partial")
    assert (state.message or "").endswith("1 failed: flows-nobody")


@pytest.mark.servers
@pytest.mark.slow
def test_late_runs_of_a_pack_that_fails_do_nothing(world: World) -> None:
    _, scores = world.deploy(mission("flows-failing", promql="down"), pack="06")
    deployment = base_deployments(world.url.removesuffix("/api"))["detect"]
    due = datetime.now(UTC) + timedelta(seconds=5)
    timing = {"interval": 86_400, "anchor_date": due.isoformat(), "timezone": "UTC"}
    path = f"deployments/{deployment}/schedules"
    [schedule] = world.server._ask("POST", path, [{"schedule": timing, "parameters": {"pack": scores}}])
    where = {"flow_runs": {"deployment_id": {"any_": [deployment]}, "created_by": {"id_": [schedule["id"]]}}}
    planned: list[dict[str, Any]] = []
    deadline = time.monotonic() + 60
    while not planned and time.monotonic() < deadline:
        time.sleep(0.2)
        planned = world.server._ask("POST", "flow_runs/filter", {**where, "sort": "EXPECTED_START_TIME_ASC"})
    time.sleep(max(0.0, (due - datetime.now(UTC)).total_seconds()))
    assert ended(world.run(detection, pack=scores)) == ("FAILED", "Failed")

    async def late() -> RunState[Any]:
        async with get_client() as client:
            run = await client.read_flow_run(planned[0]["id"])
        assert run.auto_scheduled
        state: RunState[Any] = await run_flow_async(
            detection, flow_run=run, parameters={"pack": scores}, return_type="state"
        )
        return state

    state = asyncio.run(late())
    world.server.delete_schedule(deployment, schedule["id"])
    assert ended(state) == ("COMPLETED", "Skipped")
    assert "after this run was due" in (state.message or "")


@pytest.mark.servers
@pytest.mark.slow
def test_a_run_that_lost_its_pack_stores_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    forecasts, _ = world.deploy(*(mission(f"flows-lost-{i}") for i in range(3)), pack="07")
    monkeypatch.setattr(flows, "hold", partial(lease.hold, lease=timedelta(seconds=1.5)))
    taken = threading.Event()

    def read(promql: str, grid: Grid, *, max_series: int = 10_000) -> Panel:
        if not taken.is_set():
            taken.set()
            world.server._gone(f"variables/name/{lease_name(forecasts)}")
            time.sleep(2)
        return MemoryStore.read(world.store, promql, grid, max_series=max_series)

    monkeypatch.setattr(world.store, "read", read)
    state = world.run(forecasting, pack=forecasts)
    assert ended(state) == ("FAILED", "Failed")
    assert "this run lost its pack" in (state.message or "")
    assert world.store._forecasts == {}


@pytest.mark.servers
@pytest.mark.slow
def test_a_lease_that_cannot_be_given_back_changes_nothing_about_the_run(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = lease._ask

    async def away(client: Any, method: Any, path: str, body: object = None) -> Any:
        if method == "PATCH":
            raise httpx.ConnectError("away")
        return await ask(client, method, path, body)

    monkeypatch.setattr(lease, "_ask", away)

    async def work(error: Exception | None) -> str:
        async with get_client() as client, lease.hold(client, f"at:flows:{error}", run="r") as held:
            if error:
                raise error
            return held.refused

    assert asyncio.run(work(None)) == ""
    with pytest.raises(ZeroDivisionError):
        asyncio.run(work(ZeroDivisionError("the real one")))


@pytest.mark.servers
@pytest.mark.slow
def test_a_mission_that_fails_is_a_metric_too(
    world: World, vm_server: servers.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows, "open_store", open_store)
    monkeypatch.setenv("AT_SOURCES__MAIN__URL", vm_server.url)
    failing, broken = mission("flows-absent", promql="there_is_no_such_metric"), mission("flows-broken-2")
    _, scores = world.deploy(failing, broken, pack="08")
    world.server._ask("PATCH", f"variables/name/{variable_name(broken.name)}", {"value": "nonsense"})
    assert ended(world.run(detection, pack=scores)) == ("FAILED", "Failed")
    vm_server.flush()
    with open_store(source_for_url(vm_server.url), state=Path()) as store:
        assert isinstance(store, PrometheusStore)
        found = store.query('last_over_time(anomaly_mission_failed{kind="detect"}[5m])', datetime.now(UTC))
        values = {labels.get("mission"): samples[0][1] for labels, samples in found}
        assert values == {failing.name: 1.0, broken.name: 1.0}
        found = store.query('last_over_time(at_errors{kind="detect"}[5m])', datetime.now(UTC))
        assert {labels.get("mission"): samples[0][1] for labels, samples in found}.items() >= values.items()
        info = store.query(f'last_over_time(at_mission_info{{mission="{failing.name}"}}[5m])', datetime.now(UTC))
        assert [samples[0][1] for _, samples in info] == [1.0]
        packs = store.query("count by (pack) (last_over_time(at_points_read[5m]))", datetime.now(UTC))
        assert scores in {labels.get("pack") for labels, _ in packs}
        # Like all that is ours, it is no series of a wide selector.
        with pytest.raises(NoSeriesError):
            store.read(f'{{mission="{failing.name}"}}', Grid.ending(datetime.now(UTC), STEP, 5))
    # Where it cannot be written, the run ends as it would.
    monkeypatch.setenv("AT_SOURCES__MAIN__WRITE", f"http://127.0.0.1:{servers.free_port()}/api/v1/write")
    state = world.run(detection, mission=failing.name)
    assert ended(state) == ("FAILED", "Failed")
    assert "there_is_no_such_metric" in (state.message or "")


@pytest.mark.servers
@pytest.mark.slow
def test_deploying_again_keeps_what_people_have_set(world: World) -> None:
    bases, pools = deploy_bases(world.server, work_pool="flows-pool")
    assert [(base.name, base.work_pool) for base in bases] == [
        ("forecasting/forecasting-deployment", "flows-pool"),
        ("detection/detection-deployment", "flows-pool"),
    ]
    assert pools == ["flows-pool"]
    there = world.server.base_deployments()
    by_hand = {"active": True, "parameters": {"promql": "up"}, "schedule": {"interval": 86400}}
    for base in there:
        world.server._ask("POST", f"deployments/{base.id}/schedules", [by_hand])
        queue = {"work_pool_name": "flows-pool", "work_queue_name": "heavy"}
        theirs = {"paused": True, "job_variables": {"env": {"A": "b"}}, "tags": ["anomaly-times", "team:x"]}
        world.server._ask("PATCH", f"deployments/{base.id}", {**theirs, **queue})
    before = [world.server._ask("GET", f"deployments/{base.id}") for base in there]
    again, pools = deploy_bases(world.server)
    assert [(base.work_pool, base.made) for base in again] == 2 * [("flows-pool", False)]
    assert pools == []
    after = [world.server._ask("GET", f"deployments/{base.id}") for base in there]
    volatile = {"updated", "last_polled", "status", "updated_by"}
    deploy_bases(world.server, image="registry/anomaly-times:1")
    for base in world.server.base_deployments():
        assert base.job_variables == {"env": {"A": "b"}, "image": "registry/anomaly-times:1"}
    for old, new in zip(before, after, strict=True):
        assert {key: new[key] for key in new if key not in volatile} == {
            key: old[key] for key in old if key not in volatile
        }
        assert new["pull_steps"] == []
        assert (new["work_queue_name"], new["tags"]) == ("heavy", ["anomaly-times", "team:x"])
        assert new["entrypoint"].startswith("anomaly_times.scheduling.flows.")
        assert [schedule["parameters"] for schedule in new["schedules"]] == [{"promql": "up"}]
        assert new["paused"]
        for schedule in new["schedules"]:
            world.server._ask("DELETE", f"deployments/{new['id']}/schedules/{schedule['id']}")
        # Other tests share the server.
        world.server._ask("PATCH", f"deployments/{new['id']}", {"paused": False})


@pytest.mark.servers
@pytest.mark.slow
def test_the_tasks_make_a_flow_of_ones_own(world: World) -> None:
    @flow
    async def own() -> tuple[int, int]:
        missions = [mission("flows-own")]
        panel = await flows.read("load", last="1h")
        forecasts = await flows.forecast(missions, now=datetime.now(UTC) - timedelta(minutes=30))
        await flows.write(forecasts)
        written = await flows.write(await flows.detect(missions))
        return panel.n_series, written.samples

    assert asyncio.run(own()) == (2, 2 * 30)
