"""The files in infra/ and the compose files, checked without an engine or a cluster: their schemas, and that each
command and variable that they name exists in the program."""

from __future__ import annotations

import copy
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import compose_spec
import kubernetes_validate
import pytest
import yaml
from gotpl.exts.helm import HelmTemplateEngine

from farm.cli import COMMANDS
from farm.settings import Settings

ROOT = Path(__file__).parents[2]
CHART = ROOT / "infra" / "helm" / "farm"
#: What a cluster's operators define; Kubernetes itself has no schema of them.
FOREIGN = {"ScaledObject", "TriggerAuthentication", "PodMonitor"}
#: Variables of ours that are read outside of the settings object.
ELSEWHERE = {"FARM_FLOWER_AUTH", "FARM_VERSION"}
VARIABLES = {f"FARM_{name.upper()}" for name in Settings.model_fields} | ELSEWHERE

SECRETS = {
    "FARM_DATABASE_URL": "postgresql://farm:secret@db/farm",
    "FARM_REDIS_URL": "redis://:secret@redis/0",
    "FARM_SECRET_KEY": "a key of thirty-two characters or more",
}


# -- compose ---------------------------------------------------------------------------------------------------------


def interpolated(text: str, variables: dict[str, str]) -> str:
    """The text with ``${NAME}``, ``${NAME:-default}`` and ``${NAME:?why}`` filled in, as compose does it."""

    def value(match: re.Match[str]) -> str:
        if match["escaped"]:
            return "$"
        given = variables.get(match["name"], "")
        if not given and match["how"] == ":?":
            raise ValueError(f"{match['name']} must be set: {match['rest']}")
        return given or (match["rest"] if match["how"] == ":-" else "")

    return re.sub(r"(?P<escaped>\$\$)|\$\{(?P<name>\w+)(?:(?P<how>:[-?])(?P<rest>[^}]*))?\}", value, text)


def example_environment() -> dict[str, str]:
    lines = (ROOT / "infra" / "compose.env.example").read_text().splitlines()
    pairs = (line.split("=", 1) for line in lines if line and not line.startswith("#"))
    return {name: value or "drawn" for name, value in pairs}


def composed(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(interpolated((ROOT / name).read_text(), example_environment()))
    return found


@pytest.mark.parametrize("name", ["docker-compose.yml", "docker-compose.gpu.yml"])
def test_compose_files_are_valid_and_name_only_what_exists(name: str) -> None:
    document = composed(name)
    compose_spec.PyCompose.from_json(json.dumps(document)).validate()
    for service in document["services"].values():
        command = service.get("command")
        if str(service.get("image", "")).startswith("render-farm") and command is not None:
            assert command[0] in COMMANDS, command
        for variable in service.get("environment", {}):
            if variable.startswith("FARM_"):
                assert variable in VARIABLES
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert source in document["volumes"] or (ROOT / source).exists(), source


def test_compose_has_every_part_and_publishes_on_this_machine_only() -> None:
    services = composed("docker-compose.yml")["services"]
    assert {"postgres", "valkey", "s3", "api", "dispatcher", "deliverer", "worker", "flower", "prometheus", "grafana"} <= set(services)  # fmt: skip # noqa: E501
    assert services["dispatcher"]["deploy"]["replicas"] == 2
    for service in services.values():
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), port


def test_compose_refuses_to_start_without_secrets() -> None:
    with pytest.raises(ValueError, match="POSTGRES_PASSWORD must be set"):
        interpolated((ROOT / "docker-compose.yml").read_text(), {})


def test_each_gpu_worker_owns_one_device() -> None:
    services = composed("docker-compose.gpu.yml")["services"]
    devices = [
        device
        for name, service in services.items() if name.startswith("worker-gpu")
        for device in service["deploy"]["resources"]["reservations"]["devices"]
    ]  # fmt: skip
    ids = [one for device in devices for one in device["device_ids"]]
    assert len(ids) == len(set(ids)) == len(devices) > 1


# -- images ----------------------------------------------------------------------------------------------------------


def installed(stage: str) -> set[str]:
    """The packages that a stage of the Dockerfile asks pip for, by the extras that it names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extras,) = re.findall(r"'\.\[([\w,]+)\]'", stage)
    found, left = {*project["dependencies"]}, extras.split(",")
    while left:
        for requirement in project["optional-dependencies"][left.pop()]:
            own = re.fullmatch(r"diffusion-render-farm\[([\w,]+)\]", requirement)
            if own:
                left += own[1].split(",")
            else:
                found.add(requirement)
    return {re.split(r"[\[>=<~!;]", requirement)[0] for requirement in found}


def test_images_run_as_nobody_special_and_the_control_plane_has_no_torch() -> None:
    stages = re.split(r"(?m)^FROM ", (ROOT / "infra" / "images" / "Dockerfile").read_text())[1:]
    named = {stage.splitlines()[0].split(" AS ")[1]: stage for stage in stages}
    assert {"control", "worker"} <= set(named)
    for name in ("control", "worker"):
        assert "USER 10001:10001" in named[name]
        command = json.loads(re.findall(r"(?m)^CMD (.*)$", named[name])[-1])
        assert command[0] in COMMANDS
        for variable in re.findall(r"\bFARM_\w+", named[name]):
            assert variable in VARIABLES
    assert "torch" not in installed(named["build-control"])
    assert "torch" in installed(named["build-worker"])
    assert {"fastapi", "opentelemetry-sdk"} <= installed(named["build-control"])
    ignored = (ROOT / ".dockerignore").read_text().split()
    for source in (word for line in re.findall(r"(?m)^COPY (?!--from)(.*)$", named["build"]) for word in line.split()[:-1]):  # fmt: skip # noqa: E501
        assert (ROOT / source).exists()
        assert f"!{source}" in ignored, f"{source} is not sent to the engine"


# -- the chart -------------------------------------------------------------------------------------------------------


def merged(base: Any, over: Any) -> Any:
    if isinstance(base, dict) and isinstance(over, dict):
        return {**base, **{key: merged(base.get(key), value) for key, value in over.items()}}
    return over


def rendered(**values: Any) -> list[dict[str, Any]]:
    """The chart's documents, as ``helm template`` makes them, with these values over the chart's own."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    sources = {path.name: path.read_text() for path in sorted((CHART / "templates").iterdir())}
    given = merged(yaml.safe_load((CHART / "values.yaml").read_text()), values)
    root = {
        "Values": given,
        "Chart": {"Name": chart["name"], "Version": chart["version"], "AppVersion": chart["appVersion"]},
        "Release": {
            "Name": "night",
            "Namespace": "farm",
            "Service": "Helm",
            "Revision": 1,
            "IsInstall": True,
            "IsUpgrade": False,
        },
        "Capabilities": {"KubeVersion": {"Version": "v1.34.0"}},
    }
    made = HelmTemplateEngine.from_sources(sources, strict=True).render(
        {name: copy.deepcopy(root) for name in sources if name.endswith(".yaml")}
    )
    return [document for text in made.values() for document in yaml.safe_load_all(text) if document]


def everything_on() -> dict[str, Any]:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    pool = merged(values["workers"][0], {"autoscaling": {"enabled": True}, "runtimeClassName": "nvidia"})
    small = merged(pool, {"name": "small", "autoscaling": {"enabled": False}, "modelsVolume": {"size": ""}})
    return {
        "secrets": SECRETS,
        "settings": {"FARM_S3_ENDPOINT_URL": "https://s3.example.com"},
        "models": '[[model]]\nid = "sd"\n',
        "imagePullSecrets": [{"name": "registry"}],
        "pod": {
            "serviceAccountName": "farm",
            "priorityClassName": "high",
            "affinity": {
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {
                        "nodeSelectorTerms": [
                            {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}
                        ]
                    }
                }
            },
            "extraEnv": [{"name": "FARM_CA_FILE", "value": "/etc/ca/ca.pem"}],
            "extraVolumes": [{"name": "ca", "secret": {"secretName": "ca"}}],
            "extraVolumeMounts": [{"name": "ca", "mountPath": "/etc/ca", "readOnly": True}],
        },
        "api": {"ingress": {"enabled": True, "className": "nginx", "tlsSecret": "farm-tls", "annotations": {"a": "b"}}},
        "workers": [pool, small],
        "metrics": {"podMonitor": {"enabled": True}},
        "networkPolicy": {"ingressFrom": [{"namespaceSelector": {}}], "metricsFrom": [{"namespaceSelector": {}}]},
    }


CASES: dict[str, dict[str, Any]] = {
    "defaults": {"secrets": SECRETS},
    "a secret of one's own": {"existingSecret": "farm"},
    "everything on": everything_on(),
    "little": {
        "existingSecret": "farm", "flower": {"enabled": False}, "networkPolicy": {"enabled": False},
        "api": {"autoscaling": {"enabled": False}}, "dispatcher": {"replicas": 1},
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def documents(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return rendered(**CASES[request.param])


def pods(documents: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for document in documents:
        template = document.get("spec", {}).get("template")
        if template is not None:
            yield document, template


def test_the_chart_makes_what_kubernetes_accepts(documents: list[dict[str, Any]]) -> None:
    for document in documents:
        if document["kind"] not in FOREIGN:
            kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    names = [(document["kind"], document["metadata"]["name"]) for document in documents]
    assert len(names) == len(set(names))


def test_the_chart_names_only_commands_and_variables_that_exist(documents: list[dict[str, Any]]) -> None:
    config = {d["metadata"]["name"]: set(d["data"]) for d in documents if d["kind"] == "ConfigMap"}
    for names in config.values():
        assert {name for name in names if name.startswith("FARM_")} <= VARIABLES
    for document in documents:
        if document["kind"] == "Secret":
            assert set(document["stringData"]) <= VARIABLES
    for _, template in pods(documents):
        (container,) = template["spec"]["containers"]
        assert container["args"][0] in COMMANDS
        assert {entry["name"] for entry in container.get("env", ())} <= VARIABLES
        for source in container["envFrom"]:
            if "configMapRef" in source:
                assert source["configMapRef"]["name"] in config


def test_the_chart_s_pods_are_selected_probed_and_unprivileged(documents: list[dict[str, Any]]) -> None:
    labels = [template["metadata"]["labels"] for _, template in pods(documents)]
    for document, template in pods(documents):
        if "selector" in document["spec"]:
            wanted = document["spec"]["selector"]["matchLabels"].items()
            assert [one for one in labels if wanted <= one.items()] == [template["metadata"]["labels"]]
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        (container,) = spec["containers"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        offered = {volume["name"] for volume in spec["volumes"]}
        offered |= {claim["metadata"]["name"] for claim in document["spec"].get("volumeClaimTemplates", ())}
        assert mounted == offered
    for document in documents:
        if document["kind"] in ("Service", "PodDisruptionBudget"):
            selector = document["spec"]["selector"]
            wanted = selector.get("matchLabels", selector).items()
            assert any(wanted <= one.items() for one in labels), document["metadata"]["name"]


def test_every_pod_has_the_options_of_the_values() -> None:
    for document, template in pods(rendered(**everything_on())):
        spec = template["spec"]
        assert (spec["serviceAccountName"], spec["priorityClassName"]) == ("farm", "high")
        assert spec["automountServiceAccountToken"] is True
        assert "nodeAffinity" in spec["affinity"]
        assert spec.get("runtimeClassName") == ("nvidia" if document["kind"] == "StatefulSet" else None)
        (container,) = spec["containers"]
        assert {"name": "FARM_CA_FILE", "value": "/etc/ca/ca.pem"} in container["env"]
        assert {"name": "ca", "mountPath": "/etc/ca", "readOnly": True} in container["volumeMounts"]


def test_an_install_that_waits_does_not_wait_for_itself() -> None:
    """A hook after the install would wait for services, which wait for what it does."""
    for case in CASES.values():
        (init,) = [one for one in rendered(**case) if one["kind"] == "Job"]
        hook = init["metadata"].get("annotations", {}).get("helm.sh/hook", "")
        assert "post-install" not in hook
        assert bool(hook) == bool(
            case.get("existingSecret")
        )  # a hook before the install finds no Secret of the release


def test_a_worker_pod_owns_one_gpu_and_has_time_to_drain() -> None:
    for document, template in pods(rendered(**everything_on())):
        if document["kind"] == "StatefulSet":
            spec = template["spec"]
            (container,) = spec["containers"]
            assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
            drain = {entry["name"]: entry.get("value") for entry in container["env"]}["FARM_DRAIN_SECONDS"]
            assert spec["terminationGracePeriodSeconds"] >= int(drain) + 30
            assert "TERM" in shlex.join(container["lifecycle"]["preStop"]["exec"]["command"])


def test_the_chart_asks_for_what_it_lacks() -> None:
    with pytest.raises(Exception, match="FARM_DATABASE_URL is empty"):
        rendered()


def test_the_scaler_s_query_runs_on_the_schema(database_url: str) -> None:
    import psycopg

    (scaler,) = [one for one in rendered(**everything_on()) if one["kind"] == "ScaledObject"]
    with psycopg.connect(database_url) as connection:
        row = connection.execute(scaler["spec"]["triggers"][0]["metadata"]["query"]).fetchone()
    assert row == (0,)
