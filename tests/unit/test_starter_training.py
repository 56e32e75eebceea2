"""The built-in model's training: parts that compute what they promise, and courses that resume exactly."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPTokenizer

from tools.starter import attributes, chart, images, scenes, text, tokenizer, unet, vae
from tools.starter.scenes import Colour, Place, Scene, SceneShape, Size, Thing
from tools.starter.trainer import StepRandom, Trainer


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> images.SceneImages:
    return images.prepare(tmp_path_factory.mktemp("images"), seed=9, count=6)


@pytest.mark.parametrize("words", ["zebra 🦓", "", "\t\n", "完全不明", "a" * 5000, "ÄÖ\u200b{}<|endoftext|>"])
def test_no_prompt_is_too_strange_for_the_tokenizer(words: str) -> None:
    ids = text.tokens(_tokenizer(), [words])
    assert ids.shape == (1, tokenizer.LENGTH)
    assert ids.max() < len(_tokenizer())


def test_the_words_of_the_world_are_whole_tokens() -> None:
    words = ["a", "large", "red", "cube", "and", "a", "blue", "sphere", "on", "a", "white", "background"]
    assert _tokenizer().tokenize(" ".join(words)) == [word + "</w>" for word in words]


def _tokenizer(known: list[CLIPTokenizer] = []) -> CLIPTokenizer:  # noqa: B006 a cache
    if not known:
        known.append(tokenizer.build())
    return known[0]


def test_the_classes_of_a_scene_are_its_attributes_slot_by_slot() -> None:
    scene = Scene(Colour.GREEN, (Thing(Colour.RED, SceneShape.CUBE, Size.LARGE, Place.RIGHT),))
    assert attributes.classes(scene) == [1, 0, 0, 0, 0, 0, 0, 2, 1, 3]


def test_drawing_goes_on_where_it_stopped(tmp_path: Path, drawn: images.SceneImages) -> None:
    folder = tmp_path / "images"
    images.prepare(folder, seed=9, count=6)
    (folder / "9-done.txt").write_text("3")
    kept = np.load(folder / "9-rgb.npy", mmap_mode="r+")
    kept[3:] = 0
    kept.flush()
    again = images.prepare(folder, seed=9, count=6)
    assert np.array_equal(again.rgb, drawn.rgb)


def test_the_hand_set_encoder_computes_the_thumbnail(drawn: images.SceneImages) -> None:
    images = drawn.images(np.arange(4))
    exact = vae.encode(vae.build(), images)
    assert exact.shape == (4, 4, vae.CELLS, vae.CELLS)
    assert (exact - vae.thumbnail(images)).abs().max() < 0.03
    # Channel 0 is red, averaged over a cell.
    red = images[0, 0, 8:16, 16:24].mean().item()
    assert exact[0, 0, 1, 2].item() == pytest.approx(red * vae.SCALING, abs=0.03)


def test_the_untrained_decoder_is_a_smooth_enlargement(drawn: images.SceneImages) -> None:
    assert vae.psnr(vae.build(), drawn, 4) > 18


def test_the_fifth_channel_starts_without_effect() -> None:
    plain = unet.build()
    wider = unet.with_depth(plain)
    noisy, depths = torch.randn(1, 4, 16, 16), torch.randn(1, 1, 16, 16)
    hidden, timestep = torch.randn(1, tokenizer.LENGTH, text.WIDTH), torch.tensor([500])
    with torch.no_grad():
        expected = plain(noisy, timestep, hidden).sample
        assert torch.allclose(wider(torch.cat([noisy, depths], 1), timestep, hidden).sample, expected, atol=1e-5)


def test_the_noise_schedule_ends_in_pure_noise() -> None:
    assert unet.scheduler().alphas_cumprod[-1].item() == pytest.approx(0, abs=1e-6)


class _Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(1))


def _fit(line: _Line) -> "_Fit":
    return _Fit(line)


class _Fit:
    def __init__(self, line: _Line) -> None:
        self.line = line

    def __call__(self, step: int, randomness: StepRandom) -> tuple[Tensor, Mapping[str, float]]:
        x = torch.rand(8, generator=randomness.torch) + float(randomness.numpy.random())
        loss = ((self.line.slope * x - 3 * x) ** 2).mean()
        if step == self.stop_at:
            raise KeyboardInterrupt
        return loss, {}

    stop_at = -1


def _trained(folder: Path, *, interrupted: bool) -> float:
    torch.manual_seed(0)
    if interrupted:
        line = _Line()
        fit = _fit(line)
        fit.stop_at = 37
        with pytest.raises(KeyboardInterrupt):
            Trainer("line", folder, {"line": line}, steps=120, rate=0.1, samples=8).run(fit)
    line = _Line()
    trainer = Trainer("line", folder, {"line": line}, steps=120, rate=0.1, samples=8)
    trainer.run(_fit(line))
    trainer.average()
    return line.slope.item()


def test_an_interrupted_course_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    straight = _trained(tmp_path / "straight", interrupted=False)
    broken = _trained(tmp_path / "broken", interrupted=True)
    assert broken == straight
    assert straight == pytest.approx(3, abs=0.2)


def test_a_finished_course_does_not_train_again(tmp_path: Path) -> None:
    first = _trained(tmp_path, interrupted=False)
    line = _Line()
    trainer = Trainer("line", tmp_path, {"line": line}, steps=120, rate=0.1, samples=8)
    assert trainer.finished
    trainer.average()
    assert line.slope.item() == first


def test_the_record_becomes_an_image(tmp_path: Path) -> None:
    _trained(tmp_path, interrupted=False)
    target = tmp_path / "again.png"
    chart.draw(tmp_path / "line" / "metrics.csv", target)
    assert target.stat().st_size > 1000


def test_latents_weigh_things_more(drawn: images.SceneImages) -> None:
    weight = drawn.weight(np.arange(6), vae.CELLS, 4.0)
    assert set(weight.flatten().tolist()) == {1.0, 5.0}
    assert scenes.sample(np.random.default_rng((9, 0))) == drawn.scene(0)
