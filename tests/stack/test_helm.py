"""Values for the official charts: what the charts' own schemas, their own values and a real helm say of them."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

VERSION = version("anomaly-times")
ROOT = Path(__file__).resolve().parents[2]
CHARTS = ROOT.parent / "shared" / "schemas" / "prefect-helm"
HELM = ROOT / "helm"
FREE = frozenset(
    {
        *("podSecurityContext", "containerSecurityContext", "securityContext", "updateStrategy", "lifecycle"),
        *("resources", "affinity", "podDisruptionBudget", "annotations", "config"),
    }
)
"""Below these the chart says nothing: they are Kubernetes' own, or a probe's."""

needs_charts = pytest.mark.skipif(not CHARTS.exists(), reason="the charts' schemas are not there")


def values_of(part: str) -> dict[str, Any]:
    return yaml.safe_load((HELM / f"prefect-{part}-values.yaml").read_text())


def unknown(ours: Mapping[str, Any], theirs: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Paths of keys that the chart's own values do not have."""
    for key, value in ours.items():
        if key not in theirs:
            yield path + key
        elif isinstance(value, dict) and isinstance(theirs[key], dict) and key not in FREE:
            yield from unknown(value, theirs[key], f"{path}{key}.")


@needs_charts
@pytest.mark.parametrize("part", ["server", "worker"])
def test_values_are_what_the_chart_takes(part: str) -> None:
    schema = json.loads((CHARTS / part / "values.schema.json").read_text())
    theirs = yaml.safe_load((CHARTS / part / "values.yaml").read_text())
    ours = values_of(part)
    assert list(unknown(ours, theirs)) == []
    # By hand, for the schemas name their draft by an address that jsonschema does not know.
    jsonschema.Draft7Validator(schema).validate(merged(theirs, ours))


@needs_charts
def test_a_misspelt_key_is_found() -> None:
    theirs = yaml.safe_load((CHARTS / "server" / "values.yaml").read_text())
    ours = copy.deepcopy(values_of("server"))
    ours["server"]["replicasCount"] = ours["server"].pop("replicaCount")
    ours["backgroundServices"]["messaging"]["redis"]["existingSecretKey"] = "redis-password"
    assert list(unknown(ours, theirs)) == [
        "server.replicasCount",
        "backgroundServices.messaging.redis.existingSecretKey",
    ]


@needs_charts
@pytest.mark.parametrize("part", ["server", "worker"])
def test_helm_itself_takes_the_values_and_refuses_wrong_ones(part: str, tmp_path: Path) -> None:
    helm = Path(sys.executable).with_name("helm")
    if not helm.exists():
        pytest.skip("helm-binary is not installed")
    # The schemas as a chart of its own: its templates and the charts that it builds on are not at hand.
    chart = yaml.safe_load((CHARTS / part / "Chart.yaml").read_text())
    del chart["dependencies"]
    (tmp_path / "Chart.yaml").write_text(yaml.safe_dump(chart))
    for file in ("values.yaml", "values.schema.json"):
        (tmp_path / file).write_text((CHARTS / part / file).read_text())
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "all.yaml").write_text(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: all}\ndata:\n  values: {{ .Values | toJson | quote }}\n"
    )

    def render(*more: str) -> subprocess.CompletedProcess[str]:
        command = [str(helm), "template", "x", str(tmp_path), "-f", str(HELM / f"prefect-{part}-values.yaml"), *more]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    made = render()
    assert made.returncode == 0, made.stderr
    seen = json.loads(yaml.safe_load(made.stdout)["data"]["values"])
    root = {"server": "server", "worker": "worker"}[part]
    assert seen[root]["replicaCount"] == values_of(part)[root]["replicaCount"]
    refused = render("--set", f"{root}.replicaCount=many")
    assert refused.returncode != 0
    assert "replicaCount" in refused.stderr


def test_the_server_is_highly_available_and_names_no_secret() -> None:
    ours = values_of("server")
    assert ours["server"]["replicaCount"] >= 2
    assert ours["backgroundServices"]["runAsSeparateDeployment"] is True
    messaging = ours["backgroundServices"]["messaging"]
    assert (messaging["broker"], messaging["cache"]) == ("prefect_redis.messaging", "prefect_redis.messaging")
    assert messaging["docket"]["existingSecret"]
    assert messaging["redis"]["existingSecret"]
    assert ours["externalDatabase"]["existingSecret"]
    assert ours["server"]["basicAuth"] == {"enabled": True, "existingSecret": "prefect-auth"}
    env = {item["name"]: item["value"] for item in ours["global"]["prefect"]["env"]}
    assert env["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"] == "prefect_redis.lease_storage"
    assert not {name for name in env if re.search("PASSWORD|SECRET|AUTH|CONNECTION", name)}


@pytest.mark.parametrize("part", ["server", "worker"])
def test_containers_are_locked_down_and_pinned(part: str) -> None:
    contexts = list(below(values_of(part), "containerSecurityContext"))
    assert contexts
    for context in contexts:
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["runAsNonRoot"] is True
    for tag in below(values_of(part), "prefectTag"):
        prefect, ours = tag.split("-")
        # The server's chart judges by the beginning which Prefect it is.
        assert f"\nprefect=={prefect} " in (ROOT / "constraints.txt").read_text()
        assert ours == VERSION


def test_the_job_template_is_prefects_own_with_our_defaults() -> None:
    worker = pytest.importorskip("prefect_kubernetes.worker", reason="prefect-kubernetes is not installed")
    ours = job_template()
    theirs = worker.KubernetesWorker.get_default_base_job_template()
    assert ours["variables"]["properties"].keys() == theirs["variables"]["properties"].keys()
    for name, variable in theirs["variables"]["properties"].items():
        own = ours["variables"]["properties"][name]
        assert {**own, "default": None} == {**variable, "default": None}, name
    # What Prefect puts in, it still finds the place for.
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(ours["job_configuration"])))
    assert used == set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(theirs["job_configuration"])))


def test_runs_are_locked_down_and_find_their_settings() -> None:
    pod = job_template()["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    made = {
        (item["kind"], item["metadata"]["name"]) for item in yaml.safe_load_all((HELM / "resources.yaml").read_text())
    }
    assert ("ConfigMap", container["envFrom"][0]["configMapRef"]["name"]) in made
    account = job_template()["variables"]["properties"]["service_account_name"]["default"]
    assert ("ServiceAccount", account) in made


def test_runs_get_the_servers_password_by_reference() -> None:
    ours = values_of("worker")["worker"]
    env = {item["name"]: item["value"] for item in ours["extraEnvVars"]}
    secret = ours["selfHostedServerApiConfig"]["basicAuth"]["existingSecret"]
    assert env["PREFECT_INTEGRATIONS_KUBERNETES_WORKER_API_AUTH_STRING_SECRET_NAME"] == secret


def test_every_secret_of_the_files_is_made_by_the_commands() -> None:
    commands = (HELM / "README.md").read_text()
    made = set(re.findall(r"create secret generic (\S+)", commands))
    files = "\n".join(path.read_text() for path in HELM.glob("*.yaml"))
    named = set(re.findall(r"existingSecret: (\S+)", files)) | set(re.findall(r"secret\w*Ref: \{name: ([\w-]+)", files))
    assert named == made


def job_template() -> dict[str, Any]:
    return json.loads(values_of("worker")["worker"]["config"]["baseJobTemplate"]["configuration"])


def merged(theirs: Any, ours: Any) -> Any:
    """As helm does it."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        return {key: merged(theirs.get(key), ours[key]) if key in ours else theirs[key] for key in {**theirs, **ours}}
    return ours


def below(value: Any, key: str) -> Iterator[Any]:
    """Every value under this key, however deep."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == key:
                yield inner
            yield from below(inner, key)
