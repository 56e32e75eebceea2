"""The small jobs with which a worker tries an added model."""

from __future__ import annotations

import numpy as np
from PIL import Image

from farm import model_registry
from farm.domain.model import ModelEntry, ModelFacts
from farm.pipelines.catalogue import catalogue
from workers.media.artifacts import Artifact, Clip, Sound
from workers.sample_jobs import NotTried, same_outputs, sample_job


def test_a_small_job_is_made_up_for_each_task_of_each_class_or_the_reason_is_said() -> None:
    made, refused = 0, []
    for name in sorted(catalogue().pipeline_names):
        model, _ = model_registry.combine(ModelEntry(id="m", source="a/b", pipeline=name), ModelFacts(), "test")
        if model is None:  # it does none of the farm's tasks
            continue
        for task in model.tasks:
            try:
                job = sample_job(model, task)
            except NotTried as error:
                refused.append(str(error))
            else:
                made += 1
                assert job.spec.request()["exact"] is True
                assert {role: len(files) for role, files in job.spec.inputs.items()} == {
                    role: len(artifacts) for role, artifacts in job.inputs.items()
                }
    assert made > 50 * len(refused)
    assert {reason.partition(":")[0] for reason in refused} == {"a job needs parameters", "a job needs inputs"}


def test_outputs_are_the_same_only_if_every_value_is() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    other = image.copy()
    other[3, 3, 2] = 1
    samples = np.zeros((9, 2), np.float32)
    louder = samples + np.float32(1e-6)
    pairs: list[tuple[Artifact, Artifact]] = [
        (Image.fromarray(image), Image.fromarray(other)),
        (Clip(image[None], 8), Clip(other[None], 8)),
        (Clip(image[None], 8), Clip(image[None].repeat(2, 0), 8)),
        (Sound(samples, 8), Sound(louder, 8)),
        (Clip(image[None], 8, Sound(samples, 8)), Clip(image[None], 8, Sound(louder, 8))),
        (Clip(image[None], 8, Sound(samples, 8)), Clip(image[None], 8)),
    ]
    for one, another in pairs:
        assert same_outputs([one], [one])
        assert not same_outputs([one], [another])
        assert not same_outputs([one], [one, one])
