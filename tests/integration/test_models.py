"""Models that are added, changed and removed while the farm runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from farm import lifecycle
from farm.client import ApiError, Farm, Model
from farm.domain.job import NewJob
from farm.domain.model import IMAGE_STEPS, ModelFacts, ModelState
from farm.services.live_registry import LiveRegistry
from farm.settings import Settings
from farm.store.models import StoredModel
from farm.store.tenants import Scope
from farm.store.unit_of_work import Store
from tests.api_server import Api, Hand, running
from tests.waiting import wait_until

from .worker_process import spec


@pytest.fixture
def api(farm_env: dict[str, str]) -> Iterator[Api]:
    with running(Settings()) as made:
        yield made


@pytest.fixture
def farm(api: Api) -> Iterator[Farm]:
    with Farm(api.url, api.key, retries=0) as client:
        yield client


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that says what a model is; its weights are never loaded here."""
    made = tmp_path / "tiny-sd"
    for component in ("vae", "unet", "scheduler"):
        (made / component).mkdir(parents=True)
    index = {
        "_class_name": "StableDiffusionPipeline",
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "vae": ["diffusers", "AutoencoderKL"],
        "unet": ["diffusers", "UNet2DConditionModel"],
    }
    (made / "model_index.json").write_text(json.dumps(index))
    (made / "vae" / "config.json").write_text(json.dumps({"block_out_channels": [4] * 6}))
    (made / "scheduler" / "scheduler_config.json").write_text("{}")
    (made / "unet" / "model.safetensors").touch()
    return made


def checked(api: Api, model_id: str, state: ModelState = ModelState.READY, **report: object) -> None:
    """End the check of a model in a worker's place."""
    with api.store.begin() as unit:
        assert unit.models.begin_check(model_id, "test/cpu0", {}, 60)
        found = unit.models.get(model_id)
        assert found is not None
        facts = ModelFacts.model_validate(found.facts)
        assert unit.models.end_check(model_id, "test/cpu0", state, facts, report)


def offered(farm: Farm) -> list[str]:
    """The models that jobs may name and that render."""
    return [one.id for one in farm.models() if one.id != IMAGE_STEPS.id]


def refusal(farm: Farm, **fields: Any) -> str:
    with pytest.raises(ApiError) as error:
        farm.submit("a fox", **fields)
    return str(error.value)


def test_a_model_is_added_changed_and_removed_without_a_restart(api: Api, farm: Farm, folder: Path) -> None:
    assert "there is no such model" in refusal(farm, model="tiny")
    other = LiveRegistry(api.settings, api.store)  # another process of the farm
    other.start()
    try:
        added = farm.add_model("tiny", str(folder), defaults={"num_inference_steps": 3})
        assert (added.state, added.raw["pipeline"]) == ("checking", "StableDiffusionPipeline")
        assert farm.add_model("tiny", str(folder), defaults={"num_inference_steps": 3}) == added  # sent twice
        assert "a worker has still to check this model" in refusal(farm, model="tiny")
        assert offered(farm) == ["starter"]
        assert [one.id for one in farm.unready_models()] == ["tiny"]
        checked(api, "tiny", seconds=3)
        ready = farm.wait_model("tiny", timeout=10)
        assert (ready.state, ready.report) == ("ready", {"seconds": 3})
        assert "multiples of 32" in refusal(farm, model="tiny", width=72, height=64)  # as the folder says
        assert offered(farm) == ["starter", "tiny"]
        job = farm.submit("a fox", model="tiny", width=64, height=64)
        assert job.parameters["num_inference_steps"] == 3
        wait_until(lambda: other.current.get("tiny"), what="another process has the model")

        changed = farm.change_model("tiny", defaults={"num_inference_steps": 5}, tags=["licensed"])
        assert changed.defaults == {"num_inference_steps": 5}
        assert farm.submit("a fox", model="tiny", width=64, height=64).parameters["num_inference_steps"] == 5
        wait_until(lambda: (found := other.current.get("tiny")) and found.tags == ("licensed",), what="the change")

        assert farm.remove_model("tiny").state == "removed"
        assert "this model was removed; for this task: starter" in refusal(farm, model="tiny")
        wait_until(lambda: other.current.get("tiny") is None, what="another process has the removal")
        for accepted in (job.id, farm.get(job.id).id):
            assert other.known(farm.get(accepted).parameters["model"]) is not None
        assert farm.add_model("tiny", str(folder)).defaults == {}  # again, from the beginning
        checked(api, "tiny")
        wait_until(lambda: (found := other.current.get("tiny")) and not found.defaults, what="the new entry")
    finally:
        other.stop()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"source": "org/model", "pipeline": "FluxPipelin"}, "did you mean FluxPipeline?"),
        ({"source": "org/model", "pipeline": "FluxPipeline", "tasks": ["text-to-audio"]}, "cannot do text-to-audio"),
        ({"source": "org/model", "pipeline": "FluxPipeline", "defaults": {"steps": 3}}, "steps has no default"),
        ({"source": "org/model", "pipeline": "FluxPipeline", "limits": {"max_side": 0}}, "greater than 0"),
    ],
)
def test_a_bad_entry_is_refused_in_one_sentence(farm: Farm, fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ApiError) as error:
        farm.add_model("bad", **fields)
    assert error.value.status == 422
    assert sentence in str(error.value)
    assert offered(farm) == ["starter"]


def test_a_folder_that_lacks_a_component_is_refused(farm: Farm, folder: Path) -> None:
    (folder / "vae" / "config.json").unlink()
    (folder / "vae").rmdir()
    with pytest.raises(ApiError, match=r"lacks vae, which its model_index\.json names; copy the whole model"):
        farm.add_model("tiny", str(folder))


def test_what_the_models_file_declares_is_changed_there(farm: Farm, folder: Path) -> None:
    acts: list[Callable[[], Model]] = [
        lambda: farm.add_model("starter", str(folder)),
        lambda: farm.change_model("starter", description="mine"),
        lambda: farm.remove_model("starter"),
    ]
    for act in acts:
        with pytest.raises(ApiError, match="the models file declares starter: change it there") as error:
            act()
        assert error.value.status == 409


def test_a_model_that_failed_its_check_says_why_and_may_be_added_again(api: Api, farm: Farm, folder: Path) -> None:
    farm.add_model("tiny", str(folder))
    checked(api, "tiny", ModelState.FAILED, message="it has no vocabulary")
    assert farm.wait_model("tiny", timeout=10).state == "failed"
    wait_until(lambda: "this model failed its check: it has no vocabulary" in refusal(farm, model="tiny"))
    assert farm.add_model("tiny", str(folder)).state == "checking"


def test_a_check_belongs_to_one_worker_until_its_lease_ends(api: Api, farm: Farm, folder: Path) -> None:
    farm.add_model("tiny", str(folder))
    with api.store.begin() as unit:
        assert unit.models.begin_check("tiny", "a", {}, 60)
        assert not unit.models.begin_check("tiny", "b", {}, 60)
        assert not unit.models.renew_check("tiny", "b", {}, 60)
        assert unit.models.begin_check("tiny", "a", {}, -1)  # another process of it; its lease has ended
    with api.store.begin() as unit:
        assert unit.models.begin_check("tiny", "b", {"stage": "fetching"}, 60)
        assert not unit.models.end_check("tiny", "a", ModelState.READY, ModelFacts(), {})
        assert unit.models.release_check("tiny", "b", {"message": "the storage is away"})
    assert farm.model("tiny").report == {"message": "the storage is away"}
    farm.remove_model("tiny")
    with api.store.begin() as unit:
        assert not unit.models.begin_check("tiny", "b", {}, 60)


def test_another_model_of_the_same_id_is_refused(farm: Farm, folder: Path) -> None:
    farm.add_model("tiny", str(folder))
    with pytest.raises(ApiError, match="there is a model tiny already"):
        farm.add_model("tiny", str(folder), dtype="float32")


def test_only_an_administrator_changes_models(api: Api, farm: Farm, folder: Path) -> None:
    farm.add_model("tiny", str(folder))
    with Farm(api.url, api.new_key(Scope.SUBMIT, Scope.READ, Scope.OPERATE), retries=0) as other:
        assert other.model("tiny").state == "checking"
        acts: list[Callable[[], Model]] = [
            lambda: other.add_model("mine", str(folder)),
            lambda: other.change_model("tiny", description="mine"),
            lambda: other.remove_model("tiny"),
        ]
        for act in acts:
            with pytest.raises(ApiError) as error:
                act()
            assert error.value.status == 403


def test_a_row_that_this_release_cannot_use_stops_nothing(api: Api, farm: Farm, folder: Path) -> None:
    farm.add_model("tiny", str(folder))
    checked(api, "tiny")
    with api.store.begin() as unit:
        unit.models.change("tiny", entry={"id": "tiny", "source": "x", "of_a_later_release": 1})
    wait_until(lambda: offered(farm) == ["starter"], what="it is left out")
    assert farm.model("tiny").tasks == ()
    farm.submit("a fox", model="starter")


def test_a_removed_model_stays_until_its_last_job_has_ended(api: Api, farm: Farm, folder: Path) -> None:
    farm.add_model("tiny", str(folder))
    with api.store.begin() as unit:
        job = lifecycle.submit(unit, api.tenant_id, NewJob(spec(model="tiny")))[0]
    farm.remove_model("tiny")

    def deleted(store: Store, seconds: float = 0) -> list[StoredModel]:
        with store.begin() as unit:
            return unit.models.delete_unused(seconds)

    assert deleted(api.store) == []
    Hand(api).fail(Hand(api).begin(job.id))
    assert deleted(api.store, seconds=60) == []
    (gone,) = deleted(api.store)
    assert (gone.id, gone.state) == ("tiny", ModelState.REMOVED)
