"""The files of compose: the specification's schema, what it cannot say, and what the servers say of their own files."""

from __future__ import annotations

import copy
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.servers import need

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "compose"
SCHEMA = ROOT.parent / "shared" / "schemas" / "compose" / "compose-spec.json"
FILES = ["docker-compose.yml", "docker-compose.single.yml"]
IMAGES_OWN = ("anomaly-times:",)

Stack = dict[str, Any]


def stack_of(name: str) -> Stack:
    # As compose reads it: anchors and merges resolved.
    return yaml.safe_load((COMPOSE / name).read_text())


def example_env() -> dict[str, str]:
    lines = (ROOT / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def conditions(service: dict[str, Any]) -> dict[str, Any]:
    wanted = service.get("depends_on", {})
    return wanted if isinstance(wanted, dict) else {name: {} for name in wanted}


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)
    elif isinstance(value, str):
        yield value


def variables(stack: Stack) -> dict[str, str]:
    """What is taken from the environment, with what follows the name: `:?…` or `:-…`."""
    text = "\n".join(strings(stack)).replace("$$", "")
    return dict(re.findall(r"\$\{(\w+)([^}]*)\}", text))


def flaws(stack: Stack) -> list[str]:
    """What the schema lets through and compose, Docker or a reviewer would not."""
    found = []
    services = stack["services"]
    healthy = {name for name, service in services.items() if not service.get("healthcheck", {}).get("disable")}
    ports: dict[str, str] = {}
    for name, service in services.items():
        for other, wanted in conditions(service).items():
            if other not in services:
                found.append(f"{name} depends on {other}, which does not exist")
            elif wanted.get("condition") == "service_healthy" and other not in healthy:
                found.append(f"{name} waits for the health of {other}, which has none")
            elif wanted.get("condition") == "service_completed_successfully" and other in healthy:
                found.append(f"{name} waits for the end of {other}, which stays")
            elif "condition" not in wanted:
                found.append(f"{name} depends on {other} without a condition")
        for kind in ("networks", "secrets", "configs"):
            named = [used["source"] if isinstance(used, dict) else used for used in service.get(kind, [])]
            missing = [used for used in named if used not in stack.get(kind, {})]
            found += [f"{name} uses {used} of {kind}, which does not exist" for used in missing]
        for mount in service.get("volumes", []):
            source, _, *mode = mount.split(":")
            if source.startswith("."):
                if not (COMPOSE / source).exists():
                    found.append(f"{name} mounts {source}, which does not exist")
                if mode != ["ro"]:
                    found.append(f"{name} may write to {source}")
            elif source not in stack.get("volumes", {}):
                found.append(f"{name} uses the volume {source}, which does not exist")
            if "docker.sock" in mount:
                found.append(f"{name} has the socket of Docker")
        for port in service.get("ports", []):
            host, outside, _ = port.split(":")
            if host != "127.0.0.1":
                found.append(f"{name} listens to the world on {outside}")
            if outside in ports:
                found.append(f"{name} and {ports[outside]} share the port {outside}")
            ports[outside] = name
            if all(stack["networks"].get(network, {}).get("internal") for network in service.get("networks", [])):
                found.append(f"{name} publishes {outside} from an internal network, which does nothing")
        if service.get("cap_drop") != ["ALL"] or set(service.get("cap_add", [])) - {"CHOWN"}:
            found.append(f"{name} has capabilities")
        if "no-new-privileges:true" not in service.get("security_opt", []):
            found.append(f"{name} may gain privileges")
        if service.get("read_only") is not True:
            found.append(f"{name} may write to its root file system")
        if service.get("privileged") or "mem_limit" not in service:
            found.append(f"{name} is privileged or has no limit of memory")
        if not re.search(r":v?\d+\.\d+", service["image"]) and not service["image"].startswith(IMAGES_OWN):
            found.append(f"{name} has no version: {service['image']}")
    builds = {service["image"] for service in services.values() if "build" in service}
    for name, service in services.items():
        if service["image"].startswith(IMAGES_OWN) and service["image"] not in builds:
            found.append(f"{name}: nothing builds {service['image']}")
    mounted = {mount.split(":")[0] for service in services.values() for mount in service.get("volumes", [])}
    found += [f"nothing uses the volume {volume}" for volume in stack.get("volumes", {}) if volume not in mounted]
    for variable, rest in variables(stack).items():
        if variable not in example_env():
            found.append(f"{variable} is not in .env.example")
        elif re.search("PASSWORD|AUTH|WEBHOOK", variable) and not rest.startswith(":?"):
            found.append(f"{variable} is not required")
    return found


@pytest.mark.parametrize("name", FILES)
def test_compose_takes_the_file(name: str) -> None:
    if not SCHEMA.exists():
        pytest.skip("the schema is not there")
    check = jsonschema.Draft7Validator(json.loads(SCHEMA.read_text()))
    check.validate(stack_of(name))
    wrong = stack_of(name)
    wrong["services"]["grafana"]["read_olny"] = True
    assert not check.is_valid(wrong)


@pytest.mark.parametrize("name", FILES)
def test_what_the_file_names_exists_and_every_service_is_locked_down(name: str) -> None:
    assert flaws(stack_of(name)) == []


def of(service: str, **changed: Any) -> Callable[[Stack], object]:
    return lambda stack: stack["services"][service].update(changed)


MISTAKES: dict[str, Callable[[Stack], object]] = {
    "grafana depends on victoria, which does not exist": lambda s: s["services"]["grafana"]["depends_on"].update(
        victoria={"condition": "service_healthy"}
    ),
    "grafana waits for the health of victoria-metrics, which has none": lambda s: s["services"][
        "victoria-metrics"
    ].update(healthcheck={"disable": True}),
    "worker waits for the end of setup, which stays": lambda s: s["services"]["setup"].pop("healthcheck"),
    "redis uses inner of networks, which does not exist": of("redis", networks=["inner"]),
    "redis uses the volume rediss, which does not exist": lambda s: s["services"]["redis"]["volumes"].append(
        "rediss:/x"
    ),
    "load mounts ./laod.py, which does not exist": of("load", volumes=["./laod.py:/load.py:ro"]),
    "load may write to ./load.py": of("load", volumes=["./load.py:/load.py"]),
    "prefect and grafana share the port 3000": of("prefect", ports=["127.0.0.1:3000:4200"]),
    "grafana listens to the world on 3000": of("grafana", ports=["0.0.0.0:3000:3000"]),
    "postgres publishes 5432 from an internal network, which does nothing": of(
        "postgres", ports=["127.0.0.1:5432:5432"]
    ),
    "worker has the socket of Docker": lambda s: s["services"]["worker"]["volumes"].append(
        "state:/var/run/docker.sock"
    ),
    "redis has capabilities": of("redis", cap_add=["SYS_ADMIN"]),
    "redis may gain privileges": lambda s: s["services"]["redis"].pop("security_opt"),
    "redis may write to its root file system": of("redis", read_only=False),
    "redis is privileged or has no limit of memory": lambda s: s["services"]["redis"].pop("mem_limit"),
    "redis has no version: redis:latest": of("redis", image="redis:latest"),
    "worker: nothing builds anomaly-times:other": of("worker", image="anomaly-times:other"),
    "nothing uses the volume spare": lambda s: s["volumes"].update(spare=None),
    "GRAFANA_PASWORD is not in .env.example": lambda s: s["services"]["grafana"]["environment"].update(
        GF_SECURITY_ADMIN_PASSWORD="${GRAFANA_PASWORD:?}"
    ),
    "GRAFANA_PASSWORD is not required": lambda s: s["services"]["grafana"]["environment"].update(
        GF_SECURITY_ADMIN_PASSWORD="${GRAFANA_PASSWORD:-admin}"
    ),
}


@pytest.mark.parametrize("said", MISTAKES)
def test_a_planted_mistake_is_found(said: str) -> None:
    wrong = copy.deepcopy(stack_of("docker-compose.yml"))
    MISTAKES[said](wrong)
    assert said in flaws(wrong)


def test_the_example_has_no_passwords_and_nothing_that_is_not_used() -> None:
    used = {name for file in FILES for name in variables(stack_of(file))}
    assert example_env().keys() - used == {"COMPOSE_FILE", "COMPOSE_PROFILES"}
    assert {
        name: value for name, value in example_env().items() if re.search("PASSWORD|AUTH|WEBHOOK", name) and value
    } == {}
    assert (ROOT / example_env()["COMPOSE_FILE"]).exists()


def test_the_light_stack_is_three_containers() -> None:
    assert stack_of("docker-compose.single.yml")["services"].keys() == {"victoria-metrics", "missions", "grafana"}


def test_prefect_is_highly_available_and_its_servers_start_one_after_the_other() -> None:
    services = stack_of("docker-compose.yml")["services"]
    first, second, background = (services[f"prefect-{name}"] for name in ("server-1", "server-2", "services"))
    assert second["depends_on"]["prefect-server-1"] == {"condition": "service_healthy"}
    assert background["depends_on"]["prefect-server-1"] == {"condition": "service_healthy"}
    for each in (first, second):
        assert "--no-services" in each["command"]
        assert each["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
        assert each["environment"]["PREFECT_SERVER_DATABASE_MIGRATE_ON_START"] == "false"
        assert each["environment"]["PREFECT_SERVER_API_AUTH_STRING"].startswith("${PREFECT_AUTH:?")
    nginx = (COMPOSE / "nginx" / "nginx.conf").read_text()
    assert set(re.findall(r"server (prefect-server-\d):4200", nginx)) == {"prefect-server-1", "prefect-server-2"}


def test_settings_of_prefect_are_settings_that_prefect_has() -> None:
    from prefect.settings.models.root import Settings

    # prefect_redis reads its own.
    ours = {
        name
        for name in stack_of("docker-compose.yml")["x-prefect-settings"]
        if name.startswith("PREFECT_") and not name.startswith("PREFECT_REDIS_")
    }
    known = json.dumps(Settings.model_json_schema())
    assert {name for name in ours if f'"{name}"' not in known} == set()


def loopback(text: str) -> str:
    """A file with the hosts of the stack replaced by this machine: none of them is known here."""
    hosts = "|".join(stack_of("docker-compose.yml")["services"])
    return re.sub(rf"\b({hosts}):(?=\d)", "127.0.0.1:", text)


def test_nginx_takes_its_file_and_refuses_a_wrong_one(tmp_path: Path) -> None:
    text = loopback((COMPOSE / "nginx" / "nginx.conf").read_text())
    for name in ("client", "proxy", "fastcgi", "uwsgi", "scgi", "nginx.pid"):
        text = text.replace(f"/tmp/{name}", str(tmp_path / name))

    def test(config: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "nginx.conf").write_text(config)
        command = [need("nginx"), "-t", "-q", "-c", str(tmp_path / "nginx.conf")]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert test(text).returncode == 0, test(text).stderr
    assert test(text.replace("proxy_pass", "proxy_past")).returncode != 0


def test_vmagent_takes_its_file_and_refuses_a_wrong_one(tmp_path: Path) -> None:
    def test(config: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "scrape.yml").write_text(config)
        command = [
            *(
                need("vmagent"),
                "-dryRun",
                f"-promscrape.config={tmp_path / 'scrape.yml'}",
                "-promscrape.config.strictParse",
            ),
            *("-remoteWrite.url=http://127.0.0.1:1", f"-remoteWrite.tmpDataPath={tmp_path / 'queue'}"),
        ]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    text = (COMPOSE / "vmagent" / "scrape.yml").read_text()
    assert test(text).returncode == 0, test(text).stderr
    assert test(text.replace("scrape_configs", "scrape_config")).returncode != 0
    # It watches what is there.
    targets = {target.split(":")[0] for target in re.findall(r'"([\w-]+:\d+)"', text)}
    assert targets <= stack_of("docker-compose.yml")["services"].keys()


def test_alertmanager_takes_its_file_and_refuses_a_wrong_one(tmp_path: Path) -> None:
    text = (COMPOSE / "alertmanager" / "alertmanager.yml").read_text()
    written = re.search(r"> (\S+)\n", stack_of("docker-compose.yml")["services"]["alertmanager"]["entrypoint"][-1])
    assert written
    assert f"url_file: {written[1]}" in text
    # `url_file` came with 0.26; the tool may be older.
    text = text.replace(f"url_file: {written[1]}", "url: http://127.0.0.1:9/")

    def test(config: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "alertmanager.yml").write_text(config)
        command = [need("amtool"), "check-config", str(tmp_path / "alertmanager.yml")]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert test(text).returncode == 0, test(text).stderr
    assert test(text.replace("receiver: webhook", "receiver: webhok")).returncode != 0


def test_missions_of_the_demo_load_watch_what_it_writes() -> None:
    from anomaly_times.demo import demo_missions
    from anomaly_times.loading import load_missions

    watched = load_missions([COMPOSE / "missions"])
    assert watched.problems == ()
    assert {loaded.mission.promql for loaded in watched.missions} == {mission.promql for mission in demo_missions()}


def test_rules_that_setup_writes_are_taken_by_vmalert(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from anomaly_times.cli import app

    file = tmp_path / "missions.yml"
    made = CliRunner().invoke(app, ["rules", str(COMPOSE / "missions"), "--out", str(file), "--no-keep-firing"])
    assert made.exit_code == 0, made.output
    command = [need("vmalert"), "-dryRun", f"-rule={file}", "-datasource.url=http://127.0.0.1:1"]

    def test() -> int:
        return subprocess.run(command, capture_output=True, text=True, check=False).returncode

    assert test() == 0
    file.write_text(file.read_text().replace("expr:", "exp:"))
    assert test() != 0


def test_promtool_takes_the_rules_with_all_they_have(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from anomaly_times.cli import app

    file = tmp_path / "missions.yml"
    assert CliRunner().invoke(app, ["rules", str(COMPOSE / "missions"), "--out", str(file)]).exit_code == 0
    checked = subprocess.run(
        [need("promtool"), "check", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
