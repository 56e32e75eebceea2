"""The built-in model's world: scenes that repeat, depth that is exact, captions that say what is there."""

import numpy as np
import pytest

from tools.starter import captions, scenes
from tools.starter.scenes import Colour, Place, PlacedScene, Scene, SceneShape, Size, Solid, Thing

RED_CUBE = Thing(Colour.RED, SceneShape.CUBE, Size.LARGE, Place.LEFT)
BLUE_BALL = Thing(Colour.BLUE, SceneShape.SPHERE, Size.MEDIUM, Place.RIGHT)


def _pixels_toward(point: np.ndarray, size: int) -> tuple[int, int]:
    """Row and column of the pixel that shows a point, from the camera's definition alone."""
    along = np.array([0, -np.sin(scenes.PITCH), np.cos(scenes.PITCH)])
    up = np.array([0, np.cos(scenes.PITCH), np.sin(scenes.PITCH)])
    away = point - scenes.EYE
    across, high = away[0] / (away @ along), (away @ up) / (away @ along)
    scale = size / (2 * scenes.HALF_WIDTH)
    return int(size / 2 - high * scale), int(size / 2 + across * scale)


def test_the_same_seed_draws_the_same_image() -> None:
    first, second = (
        scenes.draw(scenes.sample(rng), rng, 64) for rng in (np.random.default_rng(7), np.random.default_rng(7))
    )
    assert np.array_equal(first.rgb, second.rgb)
    assert np.array_equal(first.depth, second.depth)
    other = np.random.default_rng(8)
    assert not np.array_equal(first.rgb, scenes.draw(scenes.sample(other), other, 64).rgb)


def test_depth_is_exact_on_a_known_sphere() -> None:
    centre, radius = np.array([0.2, 0.8, 0.1], np.float32), 0.8
    grey = np.full(3, 0.5, np.float32)
    staged = PlacedScene(grey, (Solid(SceneShape.SPHERE, centre, radius, 0.0, grey),), np.array([0, 1, 0], np.float32))
    size = 256
    image = scenes.cast(staged, size)
    # The point of a sphere nearest to the eye lies on the line to its centre.
    toward = centre - scenes.EYE
    nearest = centre - radius * toward / np.linalg.norm(toward)
    along = np.array([0, -np.sin(scenes.PITCH), np.cos(scenes.PITCH)])
    row, column = _pixels_toward(nearest, size)
    assert image.cover[row, column]
    assert image.depth[row, column] == pytest.approx((nearest - scenes.EYE) @ along, abs=2e-3)


def test_the_floor_is_nearer_at_the_bottom_and_the_wall_is_the_farthest() -> None:
    rng = np.random.default_rng(0)
    image = scenes.draw(Scene(Colour.WHITE, (RED_CUBE,)), rng, 64)
    right_edge = image.depth[:, -1]
    assert (np.diff(right_edge[40:]) < 0).all()
    assert image.depth[-1].min() < image.depth[0].min()
    assert np.unravel_index(image.depth.argmax(), image.depth.shape)[0] < 32


@pytest.mark.parametrize("shape", list(SceneShape))
@pytest.mark.parametrize("place", list(Place))
def test_a_thing_stands_where_its_place_says_in_its_colour(shape: SceneShape, place: Place) -> None:
    rng = np.random.default_rng(3)
    image = scenes.draw(Scene(Colour.WHITE, (Thing(Colour.RED, shape, Size.MEDIUM, place),)), rng, 64)
    rows, columns = np.nonzero(image.cover)
    third = {Place.LEFT: (0, 28), Place.CENTER: (26, 38), Place.RIGHT: (36, 64)}[place]
    assert third[0] < columns.mean() < third[1]
    assert 20 <= np.ptp(rows) + 1 <= 44, "a thing fills a third to two thirds of the height"
    red, green, blue = image.rgb[image.cover].mean(0)
    assert red > 2 * green
    assert red > 2 * blue


def test_edges_are_smooth() -> None:
    rng = np.random.default_rng(1)
    scene = Scene(Colour.WHITE, (Thing(Colour.BLACK, SceneShape.SPHERE, Size.LARGE, Place.CENTER),))
    rim = scenes.draw(scene, rng, 64).rgb[:24, :, 0]
    between = ((rim > 70) & (rim < 190)).sum()
    assert between > 10, "pixels on the rim mix black and white"


def test_held_out_scenes_are_never_sampled_for_training() -> None:
    rng = np.random.default_rng(0)
    assert not any(scenes.held_out(scenes.sample(rng)) for _ in range(500))
    assert all(scenes.held_out(scenes.sample(rng, unseen=True)) for _ in range(100))


def test_every_colour_of_every_shape_is_seen_in_training() -> None:
    rng = np.random.default_rng(0)
    pairs = {(thing.colour, thing.shape) for _ in range(2000) for thing in scenes.sample(rng).things}
    assert len(pairs) == len(Colour) * len(SceneShape)


def test_colours_of_one_scene_differ() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        scene = scenes.sample(rng)
        colours = [scene.background, *(thing.colour for thing in scene.things)]
        assert len(set(colours)) == len(colours)


def test_the_plain_caption_says_everything() -> None:
    assert captions.plain(Scene(Colour.ORANGE, (RED_CUBE,))) == "a large red cube on the left on an orange background"
    pair = Scene(Colour.WHITE, (RED_CUBE, BLUE_BALL))
    assert captions.plain(pair) == "a large red cube and a blue sphere on a white background"
    assert "left" not in captions.plain(Scene(Colour.ORANGE, (RED_CUBE,)), placed=False)


def test_every_caption_names_each_colour_and_shape_by_one_of_its_words() -> None:
    rng = np.random.default_rng(5)
    for _ in range(500):
        scene = scenes.sample(rng)
        said = captions.caption(scene, rng).replace(",", " ").split()
        for thing in scene.things:
            assert set(said) & set(captions.COLOUR_WORDS[thing.colour]), (said, thing)
            assert set(said) & set(captions.SHAPE_WORDS[thing.shape]), (said, thing)
            if thing.size is not Size.MEDIUM:
                assert set(said) & set(captions.SIZE_WORDS[thing.size]), (said, thing)


def test_captions_vary() -> None:
    rng = np.random.default_rng(5)
    scene = Scene(Colour.WHITE, (RED_CUBE, BLUE_BALL))
    assert len({captions.caption(scene, rng) for _ in range(100)}) > 80
