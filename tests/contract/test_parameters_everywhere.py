"""Every parameter of a job is accepted, under each of its names, wherever parameters are given."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from typing import Any, Final

import httpx2
import jsonschema_rs
import pytest

from farm.api.batch_schemas import NOT_IN_QUERY
from farm.cli import app
from farm.client import Farm
from farm.dashboard import forms
from farm.domain.job_spec import InputFile
from farm.domain.model import IMAGE_STEPS
from farm.domain.numerics import Numerics
from farm.domain.parameters import PARAMETERS, Parameter, ParameterKind, stored_name, to_text
from farm.pipelines.catalogue import catalogue
from farm.pipelines.spec import Media, PipelineSpec
from farm.settings import Settings
from farm.tasks import TASKS
from tests.api_server import Api, png, running
from tests.conftest import TestServers
from tests.job_specs import STARTER_TASKS

MODEL = "starter"
IMAGE: Final = png(colour="white")  #: of a mask, too: white is replaced
KNOWN = Numerics.of("cpu", {})
#: A value of each parameter that is not its default.
SAMPLES: Final[dict[str, Any]] = {
    "model": MODEL,
    "prompt": "a red ball",
    "negative_prompt": "blue",
    "num_inference_steps": 7,
    "guidance_scale": 3.5,
    "prompt_weighting": "a1111",
    "scheduler": "dpm-solver",
    "scheduler_options": {"use_karras_sigmas": True},
    "parameters": {"clip_skip": 1},
    "padding_mask_crop": 32,
    "seed": 2**40,
    "num_outputs": 2,
    "width": 64,
    "height": 128,
    "exact": False,
    "loras": [{"name": "ink", "scale": 0.5}, {"name": "clay", "scale": 1.0}],
    "preview": True,
    "fail_on_suspicious": True,
    "output_format": "webp",
    "priority": "interactive",
    "custom_id": "a-1",
    "metadata": {"sku": "A-1"},
    "webhook": "https://example.com/hook",
    "not_before": "2027-01-31T22:00:00Z",
    "deadline": "2027-02-28T22:00:00Z",
    "numerics": KNOWN.name,
    "strength": 0.5,
    "control_scale": [0.5, 0.75],
    "control_start": 0.1,
    "control_end": 0.9,
    "control_kind": 1,
    "num_frames": 9,
    "fps": 12,
    "seconds": 2.5,
    "left": 3,
    "top": 5,
    "fit": "contain",
    "resample": "box",
    "opacity": 0.5,
    "colours": "grey",
    "threshold": 99,
    "invert": True,
}
#: Parameters that the built-in model does not take.
OF_OTHERS: Final = frozenset(
    {"control_image", "control_scale", "control_start", "control_end", "control_kind", "reference_images"}
)
#: Parameters whose values have columns of their own.
OBJECTS: Final = ("metadata", "parameters", "inputs")
#: How a job shows a parameter, where it is not one of its ``parameters``.
ELSEWHERE: Final = ("priority", "custom_id", "metadata", "webhook", "deadline", "numerics")


#: A class that does a task, by parameter and task: the built-in model's where it takes the parameter.
Taker = tuple[str, str]


def _serves(pipeline: PipelineSpec, task: str, name: str) -> bool:
    """Whether a class takes a parameter of a task, and needs nothing that no task has."""
    spec = TASKS[task]
    common = {*spec.params.model_fields, *spec.inputs}
    needed = {one.name for one in pipeline.parameters.values() if one.required}
    if not needed <= {pipeline.own_name(each) for each in common}:
        return False
    if name == "control_image":
        own = pipeline.own_name(name)
        given = None if own is None else pipeline.parameters[own].input
        return given is not None and given.many
    if name == "inputs":
        return "ip_adapter_image" in pipeline.inputs
    if name == "parameters":
        return "clip_skip" in pipeline.offered
    if name == "scheduler_options":
        return "DPMSolverMultistepScheduler" in {one.spec.name for one in catalogue().schedulers_for(pipeline.name)}
    return name not in common or pipeline.own_name(name) is not None or name in spec.honoured


def taker(name: str, task: str) -> str | None:
    """The first class that does the task and takes the parameter; of a task without a model, what does these."""
    if not TASKS[task].needs_model:
        return IMAGE_STEPS.id if name in {*TASKS[task].params.model_fields, *TASKS[task].inputs} else None
    found = (one for one in catalogue().pipelines() if task in one.tasks and _serves(one, task, name))
    return next((one.name for one in found), None)


def task_of(parameter: Parameter) -> str:
    """The first task of a parameter that some model does with it."""
    return next(
        task
        for task in TASKS
        if task in parameter.tasks and (is_starters(parameter, task) or taker(parameter.name, task))
    )


def is_starters(parameter: Parameter, task: str) -> bool:
    """Whether the built-in model does the task with the parameter."""
    return task in STARTER_TASKS and parameter.name not in OF_OTHERS


#: Every parameter under each of its names.
CASES: Final = [
    pytest.param(parameter, name, task_of(parameter), id=name)
    for parameter in PARAMETERS.values()
    for name in parameter.names
]
every_case = pytest.mark.parametrize(("parameter", "name", "task"), CASES)
#: The class that takes the most of a task's parameters and inputs, of those that use each without another.
RICHEST: Final = {
    task: max(
        (
            one
            for one in catalogue().pipelines()
            if task in one.tasks and _serves(one, task, "") and not (one.guidance and one.guidance.needs_negative)
        ),
        key=lambda one: sum(one.own_name(name) is not None for name in (*spec.params.model_fields, *spec.inputs)),
    )
    for task, spec in TASKS.items()
    if spec.needs_model
}


def pipeline_of(cls: str | None) -> PipelineSpec | None:
    """The class in the catalogue; None for what needs none."""
    return None if cls in (None, IMAGE_STEPS.id) else catalogue().pipeline(str(cls))


@pytest.fixture(scope="module")
def api(servers: TestServers, migrated_template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An API with the built-in model and its LoRAs, and a model of each class that the cases need."""
    models = tmp_path_factory.mktemp("models") / "models.toml"
    loras = "".join(f'[[model.loras]]\nname = "{name}"\nsource = "/{name}.safetensors"\n' for name in ("ink", "clay"))
    starter = (
        f'[[model]]\nid = "{MODEL}"\nsource = "builtin:starter"\npipeline = "StableDiffusionPipeline"\n'
        'pipelines = {depth-to-image = "StableDiffusionDepth2ImgPipeline"}\ndefaults = {scheduler = "dpm-solver"}\n'
    )
    classes = {one.name for one in RICHEST.values()} | {
        cls
        for parameter in PARAMETERS.values()
        if not is_starters(parameter, task_of(parameter))
        if (cls := taker(parameter.name, task_of(parameter))) not in (None, IMAGE_STEPS.id)
    }
    others = "".join(f'[[model]]\nid = "{cls}"\nsource = "some/{cls}"\npipeline = "{cls}"\n' for cls in sorted(classes))
    models.write_text(starter + loras + others)
    servers.postgres.create_database("parameters", template=migrated_template)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in servers.env(database_url=servers.postgres.url("parameters")).items():
            patch.setenv(name, value)
        settings = Settings(models_file=models)
    with running(settings) as one:
        with one.store.begin() as unit:
            unit.numerics.record(KNOWN)
        yield one
    servers.postgres.drop_database("parameters")


@pytest.fixture(scope="module")
def client(api: Api) -> Iterator[httpx2.Client]:
    with api.client() as one:
        yield one


@pytest.fixture(scope="module")
def files(api: Api) -> dict[Media, str]:
    """A stored file of each kind of media, by content."""
    found = {}
    for kind, media_type in ((Media.IMAGE, "image/png"), (Media.VIDEO, "video/mp4"), (Media.AUDIO, "audio/wav")):
        data = IMAGE if kind is Media.IMAGE else kind.encode()
        sha256 = hashlib.sha256(data).hexdigest()
        size = {} if kind is Media.AUDIO else {"width": 64, "height": 64}
        file = InputFile(sha256=sha256, key=f"inputs/{sha256}", media_type=media_type, size=len(data), metadata=size)
        with api.store.begin() as unit:
            unit.files.add(api.tenant_id, file, None)
        found[kind] = file.reference
    return found


def request(parameter: Parameter, name: str, task: str, files: dict[Media, str]) -> dict[str, Any]:
    """A request with the parameter under one of its names, and what else its task and the model need."""
    spec = TASKS[task]
    cls = None if is_starters(parameter, task) else taker(parameter.name, task)
    body: dict[str, Any] = {"task": task, "model": cls or MODEL}
    pipeline = pipeline_of(cls)
    for role, one in spec.inputs.items():
        own = None if pipeline is None else pipeline.own_name(role)
        if one.min or (pipeline is not None and own is not None and pipeline.parameters[own].required):
            body[role] = sample(PARAMETERS[role], files, task)
    if "prompt" in spec.params.model_fields and (pipeline is None or pipeline.own_name("prompt")):
        body["prompt"] = "a ball"
    if task == "resize":  # one side at least
        body["width"] = 64
    return body | {name: sample(parameter, files, task)}


def whole_request(task: str, files: dict[Media, str]) -> dict[str, Any]:
    """A request of a task with every parameter and input that the richest class for it takes."""
    spec, pipeline = TASKS[task], RICHEST[task]
    body: dict[str, Any] = {"task": task, "model": pipeline.name}
    for name in (*spec.params.model_fields, *spec.inputs):
        if pipeline.own_name(name) is not None or name in spec.honoured:
            body[name] = sample(PARAMETERS[name], files, task)
    for name in ("seed", "num_outputs", "output_format", "exact", "priority", "custom_id", "metadata"):
        body[name] = sample(PARAMETERS[name], files, task)
    common = {pipeline.own_name(name) for name in (*spec.params.model_fields, "num_outputs")}
    flags = [own for own, one in pipeline.offered.items() if own not in common and one.schema.get("type") == "boolean"]
    if flags:
        body["parameters"] = {flags[0]: True}
    return body


def has_all(job: dict[str, Any], body: dict[str, Any]) -> None:
    """The job has every value of the request."""
    for name, value in body.items():
        assert (job[name] if name in ELSEWHERE else job["parameters"].get(name)) == value, name


def sample(parameter: Parameter, files: dict[Media, str], task: str) -> Any:
    if parameter.name == "task":
        return task
    if parameter.kind is ParameterKind.INPUTS:
        return {"ip_adapter_image": [files[Media.IMAGE]]}
    if parameter.kind is ParameterKind.INPUT:
        one = TASKS[task].inputs[parameter.name]
        if parameter.name == "control_image":
            return [files[one.media]] * 2
        return files[one.media] if one.max == 1 else [files[one.media]]
    if parameter.name == "output_format":
        return {Media.IMAGE: "webp", Media.VIDEO: "webm", Media.AUDIO: "flac"}[TASKS[task].output]
    return SAMPLES[parameter.name]


def shown(job: dict[str, Any], parameter: Parameter) -> Any:
    """What a job shows of the parameter."""
    if parameter.name == "not_before":
        return job["available_at"]
    return job[parameter.name] if parameter.name in ELSEWHERE else job["parameters"].get(parameter.name)


def accepted(job: dict[str, Any], parameter: Parameter, files: dict[Media, str], task: str) -> None:
    """The job has the parameter's value."""
    found = shown(job, parameter)
    if parameter.kind is ParameterKind.TIME:
        found = str(found).replace("+00:00", "Z")
    assert found == sample(parameter, files, task)
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
    kinds = (ParameterKind.INPUT, ParameterKind.INPUTS)
    files = {one.name for one in PARAMETERS.values() if one.kind in kinds}
    assert set(SAMPLES) | files | {"task"} == set(PARAMETERS)


@every_case
def test_api_accepts(
    client: httpx2.Client, files: dict[Media, str], parameter: Parameter, name: str, task: str
) -> None:
    answer = client.post("/v1/jobs", json=request(parameter, name, task, files))
    assert answer.status_code == 201, answer.text
    accepted(answer.json(), parameter, files, task)


@every_case
def test_json_line_accepts(
    client: httpx2.Client, files: dict[Media, str], parameter: Parameter, name: str, task: str
) -> None:
    body = json.dumps(request(parameter, name, task, files))
    answer = client.post("/v1/batches", content=body, headers={"Content-Type": "application/jsonl"})
    accepted(of_batch(client, answer), parameter, files, task)


@every_case
def test_csv_column_accepts(
    client: httpx2.Client, files: dict[Media, str], parameter: Parameter, name: str, task: str
) -> None:
    body = as_csv(request(parameter, name, task, files))
    answer = client.post("/v1/batches", content=body, headers={"Content-Type": "text/csv"})
    accepted(of_batch(client, answer), parameter, files, task)


@every_case
def test_query_default_accepts(
    client: httpx2.Client, files: dict[Media, str], parameter: Parameter, name: str, task: str
) -> None:
    body = request(parameter, name, task, files)
    query = {name: text(body.pop(name))}
    if name == "webhook":
        query["webhook_jobs"] = "true"  # else it is the batch's own
    answer = client.post(
        "/v1/batches", params=query, content=json.dumps(body), headers={"Content-Type": "application/jsonl"}
    )
    if name in NOT_IN_QUERY:
        assert answer.status_code == 422
        return
    accepted(of_batch(client, answer), parameter, files, task)


@every_case
def test_json_defaults_and_sweeps_accept(
    client: httpx2.Client, files: dict[Media, str], parameter: Parameter, name: str, task: str
) -> None:
    body = request(parameter, name, task, files)
    value = body.pop(name)
    for part in ({"defaults": {name: value}, "jobs": [body]}, {"defaults": body, "sweep": [{name: [value]}]}):
        accepted(of_batch(client, client.post("/v1/batches", json=part)), parameter, files, task)


@every_case
def test_client_accepts(api: Api, files: dict[Media, str], parameter: Parameter, name: str, task: str) -> None:
    with Farm(api.url, api.key) as farm:
        job = farm.submit(**request(parameter, name, task, files))
    accepted(job.raw, parameter, files, task)


@pytest.fixture(scope="module")
def page(api: Api) -> Iterator[httpx2.Client]:
    """A browser that is signed in."""
    with httpx2.Client(base_url=api.url, headers={"Sec-Fetch-Site": "same-origin"}, trust_env=False) as one:
        assert one.post("/farm/login", data={"api_key": api.key}).status_code == 303
        yield one


@pytest.mark.parametrize("parameter", PARAMETERS.values(), ids=PARAMETERS)
def test_form_has_and_accepts(
    client: httpx2.Client, page: httpx2.Client, files: dict[Media, str], parameter: Parameter
) -> None:
    html = page.get("/farm/render").text
    assert f'name="{parameter.name}"' in html
    task = task_of(parameter)
    body = request(parameter, parameter.name, task, files)
    accepted(through_form(client, page, body), parameter, files, task)


def through_form(client: httpx2.Client, page: httpx2.Client, body: dict[str, Any]) -> dict[str, Any]:
    """The job that the form makes; images are uploaded, other files were before."""
    of_images = {one.name for one in forms.files() if "image/png" in one.accept}
    images = [
        (one, ("image.png", IMAGE, "image/png"))
        for one, value in body.items()
        if one in of_images
        for _ in (value if isinstance(value, list) else [value])
    ]
    data = {
        f"{one}_id" if one in forms.IMAGES else one: text(value) for one, value in body.items() if one not in of_images
    }
    answer = page.post("/farm/render", data=data, files=images or [("nothing", ("", b""))])
    assert answer.status_code == 303, answer.text
    found: dict[str, Any] = client.get(f"/v1/jobs/{answer.headers['location'].rpartition('/')[2]}").json()
    return found


#: The options of `farm render` that are not named like the parameter.
_OPTIONS: Final = {"mask_image": "--mask", "depth_map": "--depth"}


def options(body: dict[str, Any]) -> Iterator[str]:
    """The arguments of `farm render` for a request."""
    if "width" in body or "height" in body:
        yield from ("--size", f"{body.pop('width', 64)}x{body.pop('height', 128)}")
    for name, value in body.items():
        option = _OPTIONS.get(name, f"--{name.replace('_', '-')}")
        if isinstance(value, bool):
            yield option if value else option.replace("--", "--no-", 1)
        elif name == "inputs":
            for key, references in value.items():
                for reference in references:
                    yield from (option, f"{key}={reference}")
        elif name == "loras":
            for lora in value:
                yield from ("--lora", f"{lora['name']}:{lora['scale']}")
        elif isinstance(value, dict):
            for key, text_value in value.items():
                yield from (option, f"{key}={text_value if isinstance(text_value, str) else json.dumps(text_value)}")
        else:
            for one in value if isinstance(value, list) else [value]:
                yield from (option, str(one))


@every_case
def test_command_accepts(
    api: Api, files: dict[Media, str], parameter: Parameter, name: str, task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    body = request(parameter, name, task, files)
    accepted(through_command(api, body, capsys), parameter, files, task)


def through_command(api: Api, body: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The job that `farm render` submits."""
    prompt = [body.pop("prompt")] if "prompt" in body else []
    arguments = [*prompt, "--no-wait", "--json", "--url", api.url, "--api-key", api.key, *options(body)]
    app("render")(["render", *arguments], prog_name="farm", standalone_mode=False)
    printed = capsys.readouterr().out  # among the log lines of the API, which runs in this process
    job: dict[str, Any]
    job, _ = json.JSONDecoder().raw_decode(printed[printed.index("{\n") :])
    return job


# -- whole requests ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", RICHEST)
def test_every_surface_accepts_a_whole_request_of_each_task(
    api: Api,
    client: httpx2.Client,
    page: httpx2.Client,
    files: dict[Media, str],
    task: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    body = whole_request(task, files)
    answer = client.post("/v1/jobs", json=body)
    assert answer.status_code == 201, answer.text
    has_all(answer.json(), body)
    jsonl = {"Content-Type": "application/jsonl"}
    has_all(of_batch(client, client.post("/v1/batches", content=json.dumps(body), headers=jsonl)), body)
    table = client.post("/v1/batches", content=as_csv(body), headers={"Content-Type": "text/csv"})
    has_all(of_batch(client, table), body)
    with Farm(api.url, api.key) as farm:
        has_all(farm.submit(**body).raw, body)
    has_all(through_form(client, page, body), body)
    has_all(through_command(api, dict(body), capsys), body)


@pytest.mark.parametrize("task", RICHEST)
def test_a_recipe_is_the_request_that_made_it(client: httpx2.Client, files: dict[Media, str], task: str) -> None:
    job = client.post("/v1/jobs", json=whole_request(task, files)).raise_for_status().json()
    again = client.post("/v1/jobs", json=job["parameters"]).raise_for_status().json()
    assert again["parameters"] == job["parameters"]


@pytest.mark.parametrize("task", RICHEST)
def test_what_no_task_and_no_class_takes_is_refused(client: httpx2.Client, files: dict[Media, str], task: str) -> None:
    body = whole_request(task, files)
    answer = client.post("/v1/jobs", json=body | {"colour": "red"})
    assert answer.status_code == 422
    assert [one["field"] for one in answer.json()["errors"]] == ["colour"]
    answer = client.post("/v1/jobs", json=body | {"parameters": {"colour": "red"}})
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error["field"] == "parameters.colour"
    assert RICHEST[task].name in error["message"]


@pytest.mark.parametrize("task", RICHEST)
def test_the_schema_of_a_model_allows_what_it_takes(client: httpx2.Client, files: dict[Media, str], task: str) -> None:
    body = whole_request(task, files)
    model = client.get(f"/v1/models/{body['model']}").raise_for_status().json()
    schema = model["schemas"][task]
    validator = jsonschema_rs.Draft202012Validator(schema)
    validator.validate(body)
    assert not validator.is_valid(body | {"parameters": {"colour": "red"}})


def test_two_names_of_one_parameter_are_refused(client: httpx2.Client) -> None:
    body = {"task": "text-to-image", "prompt": "a ball", "steps": 5, "num_inference_steps": 6}
    answer = client.post("/v1/jobs", json=body)
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert (error["field"], error["message"]) == ("steps", "is another name of num_inference_steps; give one of them")
    answer = client.post("/v1/batches", content=as_csv(body), headers={"Content-Type": "text/csv"})
    (error,) = answer.json()["errors"]
    assert error["message"] == "is another name of steps"


def test_line_replaces_default_under_another_name(client: httpx2.Client, files: dict[Media, str]) -> None:
    parameter, task = PARAMETERS["num_inference_steps"], "text-to-image"
    body = request(parameter, "steps", task, files)
    for query in ({"steps": "9"}, {"num_inference_steps": "9"}):
        answer = client.post(
            "/v1/batches", params=query, content=json.dumps(body), headers={"Content-Type": "application/jsonl"}
        )
        accepted(of_batch(client, answer), parameter, files, task)
