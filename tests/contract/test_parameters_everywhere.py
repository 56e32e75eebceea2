"""Every parameter of a job is accepted, under each of its names, wherever parameters are given."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any, Final

import httpx2
import pytest

from farm.api.batch_schemas import NOT_IN_QUERY
from farm.cli import app
from farm.client import Farm
from farm.dashboard import forms
from farm.domain.parameters import PARAMETERS, Parameter, ParameterKind, stored_name, to_text
from farm.settings import Settings
from farm.tasks import TASKS
from tests.api_server import Api, png, running
from tests.conftest import TestServers

MODEL = "starter"
#: A value of each parameter that is not its default.
SAMPLES: Final[dict[str, Any]] = {
    "model": MODEL,
    "prompt": "a red ball",
    "negative_prompt": "blue",
    "num_inference_steps": 7,
    "guidance_scale": 3.5,
    "scheduler": "dpm-solver",
    "scheduler_options": {"use_karras_sigmas": True},
    "parameters": {"clip_skip": 1},
    "padding_mask_crop": 32,
    "seed": 2**40,
    "num_outputs": 2,
    "width": 64,
    "height": 72,
    "exact": False,
    "loras": [{"name": "ink", "scale": 0.5}, {"name": "clay", "scale": 1.0}],
    "preview": True,
    "output_format": "webp",
    "priority": "interactive",
    "custom_id": "a-1",
    "metadata": {"sku": "A-1"},
    "webhook": "https://example.com/hook",
    "not_before": "2027-01-31T22:00:00Z",
    "deadline": "2027-02-28T22:00:00Z",
    "task": "image-to-image",
    "strength": 0.5,
}
#: Parameters whose values have columns of their own.
OBJECTS: Final = ("metadata", "parameters")
#: How a job shows a parameter, where it is not one of its ``parameters``.
ELSEWHERE: Final = ("priority", "custom_id", "metadata", "webhook", "deadline")
NAMES: Final = [(parameter, name) for parameter in PARAMETERS.values() for name in parameter.names]
every_name = pytest.mark.parametrize(("parameter", "name"), NAMES, ids=[name for _, name in NAMES])


@pytest.fixture(scope="module")
def api(servers: TestServers, migrated_template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An API whose second model has LoRAs."""
    models = tmp_path_factory.mktemp("models") / "models.toml"
    tasks = json.dumps(list(TASKS))
    depth = 'pipelines = {{depth-to-image = "StableDiffusionDepth2ImgPipeline"}}'
    entry = '[[model]]\nid = "{}"\nsource = "builtin:starter"\npipeline = "StableDiffusionPipeline"\n' + depth
    entry += "\ntasks = {}\n" + 'defaults = {{scheduler = "dpm-solver"}}\n'
    loras = "".join(f'[[model.loras]]\nname = "{name}"\nsource = "/{name}.safetensors"\n' for name in ("ink", "clay"))
    models.write_text(entry.format("other", tasks) + entry.format(MODEL, tasks) + loras)
    servers.postgres.create_database("parameters", template=migrated_template)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in servers.env(database_url=servers.postgres.url("parameters")).items():
            patch.setenv(name, value)
        settings = Settings(models_file=models)
    with running(settings) as one:
        yield one
    servers.postgres.drop_database("parameters")


@pytest.fixture(scope="module")
def client(api: Api) -> Iterator[httpx2.Client]:
    with api.client() as one:
        yield one


@pytest.fixture(scope="module")
def image(client: httpx2.Client) -> str:
    """An uploaded image, by content."""
    file = (
        client.post("/v1/files", content=png(colour="white"), headers={"Content-Type": "image/png"})
        .raise_for_status()
        .json()
    )
    return f"sha256:{file['sha256']}"


def request(parameter: Parameter, name: str, image: str) -> dict[str, Any]:
    """A request with the parameter under one of its names, and what else its task needs."""
    task = next(iter(sorted(parameter.tasks))) if "text-to-image" not in parameter.tasks else "text-to-image"
    body: dict[str, Any] = {"task": task, "prompt": "a ball", "model": MODEL}
    for other in PARAMETERS.values():
        if other.kind is ParameterKind.INPUT and other.required and task in other.tasks:
            body[other.name] = image
    if parameter.name == "task":
        body |= {"image": image}
    return body | {name: sample(parameter, image)}


def sample(parameter: Parameter, image: str) -> Any:
    return image if parameter.kind is ParameterKind.INPUT else SAMPLES[parameter.name]


def shown(job: dict[str, Any], parameter: Parameter) -> Any:
    """What a job shows of the parameter."""
    if parameter.name == "not_before":
        return job["available_at"]
    return job[parameter.name] if parameter.name in ELSEWHERE else job["parameters"].get(parameter.name)


def accepted(job: dict[str, Any], parameter: Parameter, image: str) -> None:
    """The job has the parameter's value."""
    found = shown(job, parameter)
    if parameter.kind is ParameterKind.TIME:
        found = str(found).replace("+00:00", "Z")
    assert found == sample(parameter, image)
    assert not {name for name in job["parameters"] if stored_name(name) != name}


def of_batch(client: httpx2.Client, batch: httpx2.Response) -> dict[str, Any]:
    """The only job of a new batch."""
    assert batch.status_code == 201, batch.text
    (job,) = client.get(f"/v1/batches/{batch.json()['id']}/jobs").json()["data"]
    found: dict[str, Any] = job
    return found


def as_csv(body: dict[str, Any]) -> str:
    """The request as a table of one row."""
    cells = {name: text(value) for name, value in body.items() if name not in OBJECTS}
    for of in OBJECTS:
        cells |= {f"{of}.{name}": text(value) for name, value in body.get(of, {}).items()}
    out = io.StringIO()
    csv.writer(out).writerows([list(cells), list(cells.values())])
    return out.getvalue()


def text(value: object) -> str:
    return to_text(value)


def test_there_is_a_sample_of_every_parameter() -> None:
    inputs = {one.name for one in PARAMETERS.values() if one.kind is ParameterKind.INPUT}
    assert set(SAMPLES) | inputs == set(PARAMETERS)


@every_name
def test_api_accepts(client: httpx2.Client, image: str, parameter: Parameter, name: str) -> None:
    answer = client.post("/v1/jobs", json=request(parameter, name, image))
    assert answer.status_code == 201, answer.text
    accepted(answer.json(), parameter, image)


@every_name
def test_json_line_accepts(client: httpx2.Client, image: str, parameter: Parameter, name: str) -> None:
    body = json.dumps(request(parameter, name, image))
    answer = client.post("/v1/batches", content=body, headers={"Content-Type": "application/jsonl"})
    accepted(of_batch(client, answer), parameter, image)


@every_name
def test_csv_column_accepts(client: httpx2.Client, image: str, parameter: Parameter, name: str) -> None:
    body = as_csv(request(parameter, name, image))
    answer = client.post("/v1/batches", content=body, headers={"Content-Type": "text/csv"})
    accepted(of_batch(client, answer), parameter, image)


@every_name
def test_query_default_accepts(client: httpx2.Client, image: str, parameter: Parameter, name: str) -> None:
    body = request(parameter, name, image)
    query = {name: text(body.pop(name))}
    if name == "webhook":
        query["webhook_jobs"] = "true"  # else it is the batch's own
    answer = client.post(
        "/v1/batches", params=query, content=json.dumps(body), headers={"Content-Type": "application/jsonl"}
    )
    if name in NOT_IN_QUERY:
        assert answer.status_code == 422
        return
    accepted(of_batch(client, answer), parameter, image)


@every_name
def test_json_defaults_and_sweeps_accept(client: httpx2.Client, image: str, parameter: Parameter, name: str) -> None:
    body = request(parameter, name, image)
    value = body.pop(name)
    for part in ({"defaults": {name: value}, "jobs": [body]}, {"defaults": body, "sweep": [{name: [value]}]}):
        accepted(of_batch(client, client.post("/v1/batches", json=part)), parameter, image)


@every_name
def test_client_accepts(api: Api, image: str, parameter: Parameter, name: str) -> None:
    with Farm(api.url, api.key) as farm:
        body = request(parameter, name, image)
        job = farm.submit(body.pop("prompt"), **{_CLIENT.get(key, key): value for key, value in body.items()})
    accepted(job.raw, parameter, image)


#: What the client calls the image parameters.
_CLIENT: Final = {"mask_image": "mask", "depth_map": "depth"}


@pytest.fixture(scope="module")
def page(api: Api) -> Iterator[httpx2.Client]:
    """A browser that is signed in."""
    with httpx2.Client(base_url=api.url, headers={"Sec-Fetch-Site": "same-origin"}, trust_env=False) as one:
        assert one.post("/farm/login", data={"api_key": api.key}).status_code == 303
        yield one


@pytest.mark.parametrize("parameter", PARAMETERS.values(), ids=PARAMETERS)
def test_form_has_and_accepts(client: httpx2.Client, page: httpx2.Client, image: str, parameter: Parameter) -> None:
    html = page.get("/farm/render").text
    assert f'name="{parameter.name}"' in html
    body = request(parameter, parameter.name, image)
    images = {one: ("image.png", png(colour="white"), "image/png") for one in body if one in forms.IMAGES}
    data = {one: text(value) for one, value in body.items() if one not in images}
    answer = page.post("/farm/render", data=data, files=images or {"nothing": ("", b"")})
    assert answer.status_code == 303, answer.text
    job = client.get(f"/v1/jobs/{answer.headers['location'].rpartition('/')[2]}").json()
    accepted(job, parameter, image)


#: The options of `farm render` that are not named like the parameter.
_OPTIONS: Final = {"mask_image": "--mask", "depth_map": "--depth"}


def options(body: dict[str, Any]) -> Iterator[str]:
    """The arguments of `farm render` for a request."""
    if "width" in body or "height" in body:
        yield from ("--size", f"{body.pop('width', 64)}x{body.pop('height', 72)}")
    for name, value in body.items():
        option = _OPTIONS.get(name, f"--{name.replace('_', '-')}")
        if isinstance(value, bool):
            yield option if value else option.replace("--", "--no-", 1)
        elif name == "loras":
            for lora in value:
                yield from ("--lora", f"{lora['name']}:{lora['scale']}")
        elif isinstance(value, dict):
            for key, text_value in value.items():
                yield from (option, f"{key}={text_value if isinstance(text_value, str) else json.dumps(text_value)}")
        else:
            yield from (option, str(value))


@every_name
def test_command_accepts(
    api: Api, image: str, parameter: Parameter, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    body = request(parameter, name, image)
    arguments = [body.pop("prompt"), "--no-wait", "--json", "--url", api.url, "--api-key", api.key, *options(body)]
    app("render")(["render", *arguments], prog_name="farm", standalone_mode=False)
    printed = capsys.readouterr().out  # among the log lines of the API, which runs in this process
    job, _ = json.JSONDecoder().raw_decode(printed[printed.index("{\n") :])
    accepted(job, parameter, image)


def test_two_names_of_one_parameter_are_refused(client: httpx2.Client) -> None:
    body = {"task": "text-to-image", "prompt": "a ball", "steps": 5, "num_inference_steps": 6}
    answer = client.post("/v1/jobs", json=body)
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert (error["field"], error["message"]) == ("steps", "is another name of num_inference_steps; give one of them")
    answer = client.post("/v1/batches", content=as_csv(body), headers={"Content-Type": "text/csv"})
    (error,) = answer.json()["errors"]
    assert error["message"] == "is another name of steps"


def test_line_replaces_default_under_another_name(client: httpx2.Client, image: str) -> None:
    parameter = PARAMETERS["num_inference_steps"]
    body = request(parameter, "steps", image)
    for query in ({"steps": "9"}, {"num_inference_steps": "9"}):
        answer = client.post(
            "/v1/batches", params=query, content=json.dumps(body), headers={"Content-Type": "application/jsonl"}
        )
        accepted(of_batch(client, answer), parameter, image)
