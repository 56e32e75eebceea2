"""Small captionless 3-D scenes with exact depth: the world the built-in model knows.

A `Scene` says what is in the image; `draw` says how it looks, by casting one ray per pixel in plain numpy (and
sixteen where an edge runs through the pixel). Units are scene units: the whole frame is about three units wide where
the things stand. x points right, y up, z away from the camera; the floor is y = 0.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]
Bytes: TypeAlias = NDArray[np.uint8]


class Colour(StrEnum):
    """What a thing or a background can be painted."""

    RED = "red"
    GREEN = "green"
    BLUE = "blue"
    YELLOW = "yellow"
    ORANGE = "orange"
    PURPLE = "purple"
    CYAN = "cyan"
    PINK = "pink"
    WHITE = "white"
    BLACK = "black"


class SceneShape(StrEnum):
    """What a thing can be."""

    SPHERE = "sphere"
    CUBE = "cube"
    CONE = "cone"
    CYLINDER = "cylinder"


class Size(StrEnum):
    """How high a thing is; a prompt that says nothing means `MEDIUM`."""

    SMALL = "small"
    MEDIUM = "medium"
    LARGE = "large"


class Place(StrEnum):
    """Where a thing stands, seen from the camera."""

    LEFT = "left"
    CENTER = "center"
    RIGHT = "right"


COLOURS: Final = tuple(Colour)
SHAPES: Final = tuple(SceneShape)
SIZES: Final = tuple(Size)
PLACES: Final = tuple(Place)

#: Reflectance of each colour, linear in the range 0 to 1.
RGB: Final[dict[Colour, tuple[float, float, float]]] = {
    Colour.RED: (0.86, 0.09, 0.10),
    Colour.GREEN: (0.10, 0.62, 0.16),
    Colour.BLUE: (0.10, 0.24, 0.86),
    Colour.YELLOW: (0.97, 0.86, 0.08),
    Colour.ORANGE: (0.97, 0.47, 0.03),
    Colour.PURPLE: (0.50, 0.12, 0.72),
    Colour.CYAN: (0.10, 0.80, 0.86),
    Colour.PINK: (0.98, 0.50, 0.72),
    Colour.WHITE: (0.95, 0.95, 0.95),
    Colour.BLACK: (0.07, 0.07, 0.08),
}

#: Height of a thing that stands alone, and of one of a pair, in scene units.
HEIGHT_ALONE: Final = {Size.SMALL: 1.10, Size.MEDIUM: 1.45, Size.LARGE: 1.80}
HEIGHT_IN_PAIR: Final = {Size.SMALL: 0.95, Size.MEDIUM: 1.17, Size.LARGE: 1.40}
#: Where a place is, in scene units to the right of the middle, for a thing alone and for one of a pair.
OFFSET_ALONE: Final = {Place.LEFT: -0.64, Place.CENTER: 0.0, Place.RIGHT: 0.64}
OFFSET_IN_PAIR: Final = {Place.LEFT: -0.74, Place.RIGHT: 0.74}

EYE: Final = np.array([0.0, 1.75, -5.2], np.float32)
PITCH: Final = 0.215  # radians, downwards
HALF_WIDTH: Final = 0.30  # of the image plane at distance 1, so the field of view is 33 degrees
WALL: Final = 3.0  # z of the back wall
SUN: Final = np.array([-0.50, 0.90, -0.60], np.float32)
FAR: Final = np.float32(1e9)
SUBPIXELS: Final = 4  # per side, where an edge runs through a pixel


@dataclass(frozen=True, slots=True)
class Thing:
    """One object as a prompt can name it."""

    colour: Colour
    shape: SceneShape
    size: Size
    place: Place


@dataclass(frozen=True, slots=True)
class Scene:
    """What an image holds: a background colour and one or two things of other colours, from left to right."""

    background: Colour
    things: tuple[Thing, ...]


@dataclass(frozen=True, slots=True)
class Solid:
    """One object as the ray caster sees it."""

    shape: SceneShape
    centre: Floats  # (3,)
    half: float  # half the height
    turn: float  # radians about the vertical axis
    rgb: Floats  # (3,)


@dataclass(frozen=True, slots=True)
class PlacedScene:
    """A scene with every free choice made: exact positions, shades and light. Drawing it involves no chance."""

    background: Floats  # (3,)
    solids: tuple[Solid, ...]
    sun: Floats  # (3,), unit length, from the scene to the light


@dataclass(frozen=True, slots=True)
class DrawnScene:
    """A drawn scene.

    `rgb` is (H, W, 3); `depth` (H, W) is the exact distance from the eye along the viewing axis, in scene units, at
    each pixel's middle; `cover` (H, W) tells which pixels show a thing rather than the background.
    """

    rgb: Bytes
    depth: Floats
    cover: NDArray[np.bool_]


def held_out(scene: Scene) -> bool:
    """Whether the scene holds a (colour, shape, background) triple kept away from training, about one in eleven."""
    background = COLOURS.index(scene.background)
    return any(
        (background + 3 * COLOURS.index(thing.colour) + 5 * SHAPES.index(thing.shape)) % 11 == 0
        for thing in scene.things
    )


def sample(rng: np.random.Generator, *, things: int | None = None, unseen: bool = False) -> Scene:
    """Draws a scene at random.

    Args:
        rng: the source of chance.
        things: one or two; by default either, equally often.
        unseen: draw from the held-out scenes instead of from those used in training.
    """
    while True:
        scene = _any_scene(rng, things or int(rng.integers(1, 3)))
        if held_out(scene) == unseen:
            return scene


def _any_scene(rng: np.random.Generator, things: int) -> Scene:
    background, *colours = (COLOURS[i] for i in rng.choice(len(COLOURS), things + 1, replace=False))
    places = [PLACES[rng.integers(3)]] if things == 1 else [Place.LEFT, Place.RIGHT]
    return Scene(
        background,
        tuple(
            Thing(colour, SHAPES[rng.integers(len(SHAPES))], SIZES[rng.integers(len(SIZES))], place)
            for colour, place in zip(colours, places, strict=True)
        ),
    )


def recolour(scene: Scene, colour: Colour) -> Scene:
    """The same scene with its first thing in another colour."""
    first, *others = scene.things
    return replace(scene, things=(replace(first, colour=colour), *others))


def stage(scene: Scene, rng: np.random.Generator) -> PlacedScene:
    """Makes the free choices that a prompt leaves open: a little of place, size, turn, shade and light."""
    alone = len(scene.things) == 1
    heights, offsets = (HEIGHT_ALONE, OFFSET_ALONE) if alone else (HEIGHT_IN_PAIR, OFFSET_IN_PAIR)

    def shade(colour: Colour) -> Floats:
        return np.clip(np.array(RGB[colour], np.float32) + rng.normal(0, 0.015, 3).astype(np.float32), 0, 1)

    solids = []
    for thing in scene.things:
        half = heights[thing.size] / 2 * rng.uniform(0.95, 1.05)
        if thing.shape is SceneShape.CUBE:
            half *= 0.80  # a turned cube shows its diagonal and looks bigger than a ball of its height
        centre = [offsets[thing.place] + rng.normal(0, 0.04), half, rng.uniform(-0.15, 0.15)]
        turn = rng.uniform(0.3, 1.25) if thing.shape is SceneShape.CUBE else 0.0
        solids.append(Solid(thing.shape, np.array(centre, np.float32), half, turn, shade(thing.colour)))
    sun = SUN + rng.normal(0, 0.06, 3).astype(np.float32)
    return PlacedScene(shade(scene.background), tuple(solids), sun / np.linalg.norm(sun))


def draw(scene: Scene, rng: np.random.Generator, size: int = 128) -> DrawnScene:
    """Draws one image of the scene, `size` pixels wide and high. The same seed gives the same image."""
    return cast(stage(scene, rng), size)


def cast(staged: PlacedScene, size: int) -> DrawnScene:
    """Casts the rays of a stage."""
    rays, forward = _rays(size, 1)
    distance, normal, part = _hits(staged.solids, EYE, rays)
    shadow = _Shadow(staged)
    rgb = _shade(staged, shadow, rays, normal, part).reshape(size, size, 3)
    ground = part < 0
    seen = np.where(ground, _ground(rays), distance)
    depth = (seen * forward).reshape(size, size)
    part = part.reshape(size, size)

    rows, columns = np.nonzero(_edges(part))
    fine, _ = _rays(size, SUBPIXELS)
    fine = fine.reshape(size, SUBPIXELS, size, SUBPIXELS, 3)[rows, :, columns].reshape(-1, 3)
    _, fine_normal, fine_part = _hits(staged.solids, EYE, fine)
    blended = _shade(staged, shadow, fine, fine_normal, fine_part)
    rgb[rows, columns] = blended.reshape(len(rows), SUBPIXELS**2, 3).mean(1)
    return DrawnScene((rgb * 255 + 0.5).astype(np.uint8), depth.astype(np.float32), part >= 0)


@lru_cache(maxsize=4)
def _rays(size: int, per_side: int) -> tuple[Floats, Floats]:
    """Unit directions (N, 3) through the middle of each (sub)pixel, row by row, and their part along the axis (N,)."""
    across = (np.arange(size * per_side, dtype=np.float32) + 0.5) / (size * per_side) * 2 - 1
    x, y = np.meshgrid(across * HALF_WIDTH, -across * HALF_WIDTH)
    cos, sin = math.cos(PITCH), math.sin(PITCH)
    rays = np.stack([x, cos * y - sin, sin * y + cos], -1).reshape(-1, 3).astype(np.float32)
    length = np.linalg.norm(rays, axis=1)
    return rays / length[:, None], (1 / length).astype(np.float32)


def _edges(part: NDArray[np.int8]) -> NDArray[np.bool_]:
    """The pixels next to which (above, below, left or right) another surface begins."""
    edge = np.zeros(part.shape, np.bool_)
    down = part[1:] != part[:-1]
    across = part[:, 1:] != part[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    return edge


def _hits(solids: tuple[Solid, ...], eye: Floats, rays: Floats) -> tuple[Floats, Floats, NDArray[np.int8]]:
    """The nearest surface along each ray: distance (N,), outward normal (N, 3), and which part of what, or -1 (N,)."""
    distance = np.full(len(rays), FAR, np.float32)
    normal = np.zeros((len(rays), 3), np.float32)
    part = np.full(len(rays), -1, np.int8)
    for number, solid in enumerate(solids):
        near = _around(solid, eye, rays)
        t, n, face = _INTERSECT[solid.shape](solid, eye, rays[near])
        closer = t < distance[near]
        index = near[closer]
        distance[index], normal[index], part[index] = t[closer], n[closer], face[closer] + 8 * number
    return distance, normal, part


def _around(solid: Solid, eye: Floats, rays: Floats) -> NDArray[np.intp]:
    """The rays that pass through the solid's bounding ball; the others need no further look."""
    reach = 1.75 * solid.half  # half the diagonal of a cube
    to_centre = solid.centre - eye
    along = rays @ to_centre
    return np.nonzero(to_centre @ to_centre - along * along < reach * reach)[0]


_Hit: TypeAlias = tuple[Floats, Floats, NDArray[np.int8]]


def _sphere(solid: Solid, eye: Floats, rays: Floats) -> _Hit:
    to_eye = eye - solid.centre
    b = rays @ to_eye
    inside = b * b - (to_eye @ to_eye - solid.half**2)
    t = -b - np.sqrt(np.maximum(inside, 0))
    t = np.where((inside > 0) & (t > 0), t, FAR).astype(np.float32)
    normal = (to_eye + np.where(t < FAR, t, 0)[:, None] * rays) / solid.half
    return t, normal.astype(np.float32), np.zeros(len(t), np.int8)


def _cube(solid: Solid, eye: Floats, rays: Floats) -> _Hit:
    cos, sin = math.cos(solid.turn), math.sin(solid.turn)
    into = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]], np.float32)
    start, direction = (eye - solid.centre) @ into, rays @ into
    inverse = 1 / np.where(np.abs(direction) < 1e-6, np.float32(1e-6), direction)
    first, second = (-solid.half - start) * inverse, (solid.half - start) * inverse
    enter = np.minimum(first, second)
    axis = enter.argmax(1)
    t = enter.max(1)
    hit = (t < np.maximum(first, second).min(1)) & (t > 0)
    row = np.arange(len(t))
    normal = np.zeros_like(direction)
    normal[row, axis] = -np.sign(direction[row, axis])
    face = (axis * 2 + (normal[row, axis] > 0)).astype(np.int8)
    return np.where(hit, t, FAR).astype(np.float32), normal @ into.T, face


def _cylinder(solid: Solid, eye: Floats, rays: Floats) -> _Hit:
    radius = 0.74 * solid.half
    start = eye - solid.centre
    a = rays[:, 0] ** 2 + rays[:, 2] ** 2
    b = start[0] * rays[:, 0] + start[2] * rays[:, 2]
    inside = b * b - a * (start[0] ** 2 + start[2] ** 2 - radius**2)
    t = (-b - np.sqrt(np.maximum(inside, 0))) / np.maximum(a, 1e-9)
    wall = (inside > 0) & (t > 0) & (np.abs(start[1] + t * rays[:, 1]) < solid.half)
    t = np.where(wall, t, FAR)
    point = start + np.where(wall, t, 0)[:, None] * rays
    normal = np.stack([point[:, 0] / radius, np.zeros_like(t), point[:, 2] / radius], 1)
    return _lid(solid.half, radius, start, rays, t, normal)


def _cone(solid: Solid, eye: Floats, rays: Floats) -> _Hit:
    radius = 0.96 * solid.half
    slope = radius / (2 * solid.half)
    start = eye - solid.centre
    tip, fall = solid.half - start[1], -rays[:, 1]
    a = rays[:, 0] ** 2 + rays[:, 2] ** 2 - slope**2 * fall**2
    b = start[0] * rays[:, 0] + start[2] * rays[:, 2] - slope**2 * tip * fall
    inside = b * b - a * (start[0] ** 2 + start[2] ** 2 - slope**2 * tip**2)
    a = np.where(np.abs(a) < 1e-6, 1e-6, a)
    t = np.full(len(rays), FAR, np.float32)
    for sign in (-1, 1):
        root = (-b + sign * np.sqrt(np.maximum(inside, 0))) / a
        wall = (inside > 0) & (root > 0) & (np.abs(start[1] + root * rays[:, 1]) < solid.half)
        t = np.where(wall & (root < t), root, t)
    point = start + np.where(t < FAR, t, 0)[:, None] * rays
    around = np.sqrt(point[:, 0] ** 2 + point[:, 2] ** 2) + 1e-6
    normal = np.stack([point[:, 0] / around, np.full_like(around, slope), point[:, 2] / around], 1)
    # The base faces the floor and is never seen, but a shadow ray may start below it.
    return t.astype(np.float32), (normal / math.sqrt(1 + slope**2)).astype(np.float32), np.zeros(len(t), np.int8)


def _lid(half: float, radius: float, start: Floats, rays: Floats, t: Floats, normal: Floats) -> _Hit:
    """Adds the round top to the wall of a cylinder. Its bottom stands on the floor."""
    drop = np.where(np.abs(rays[:, 1]) < 1e-6, np.float32(1e-6), rays[:, 1])
    top = (half - start[1]) / drop
    x, z = start[0] + top * rays[:, 0], start[2] + top * rays[:, 2]
    on = (top > 0) & (x * x + z * z < radius * radius) & (top < t)
    normal = np.where(on[:, None], np.array([0, 1, 0], np.float32), normal)
    return np.where(on, top, t).astype(np.float32), normal.astype(np.float32), on.astype(np.int8)


_INTERSECT: Final = {
    SceneShape.SPHERE: _sphere,
    SceneShape.CUBE: _cube,
    SceneShape.CONE: _cone,
    SceneShape.CYLINDER: _cylinder,
}


def _ground(rays: Floats) -> Floats:
    """Distance (N,) to the floor, or to the back wall where the ray reaches that first."""
    floor = -EYE[1] / np.minimum(rays[:, 1], -1e-6)
    wall = (WALL - EYE[2]) / np.maximum(rays[:, 2], 1e-6)
    nearest: Floats = np.minimum(floor, wall).astype(np.float32)
    return nearest


class _Shadow:
    """How much of the sun reaches each point of the floor: a blurred map, so that shadows have soft edges."""

    CELLS = 72
    EXTENT = 2.4  # the map covers this far from the origin on every side, in scene units

    def __init__(self, staged: PlacedScene) -> None:
        at = (np.arange(self.CELLS, dtype=np.float32) + 0.5) / self.CELLS * 2 * self.EXTENT - self.EXTENT
        x, z = np.meshgrid(at, at)
        floor = np.stack([x, np.full_like(x, 1e-3), z], -1).reshape(-1, 3).astype(np.float32)
        blocked = np.zeros(len(floor), np.float32)
        contact = np.zeros(len(floor), np.float32)
        for solid in staged.solids:
            blocked = np.maximum(blocked, _blocked(solid, floor, staged.sun))
            away = np.hypot(floor[:, 0] - solid.centre[0], floor[:, 2] - solid.centre[2])
            contact = np.maximum(contact, np.clip(1.5 - away / solid.half, 0, 1))
        shade = _blur(blocked.reshape(self.CELLS, self.CELLS), 2)
        self._map = 1 - np.maximum(shade, 0.6 * contact.reshape(self.CELLS, self.CELLS))

    def __call__(self, points: Floats) -> Floats:
        """Light (N,) in the range 0 to 1 at floor points (N, 3), interpolated between the cells."""
        at = (points[:, (0, 2)] + self.EXTENT) / (2 * self.EXTENT) * self.CELLS - 0.5
        at = np.clip(at, 0, self.CELLS - 1.001)
        low = at.astype(np.intp)
        x, z = low[:, 0], low[:, 1]
        u, v = (at - low).T
        grid = self._map
        near = grid[z, x] * (1 - u) + grid[z, x + 1] * u
        far = grid[z + 1, x] * (1 - u) + grid[z + 1, x + 1] * u
        light: Floats = (near * (1 - v) + far * v).astype(np.float32)
        return light


def _blocked(solid: Solid, points: Floats, sun: Floats) -> Floats:
    """1 where the solid stands between a point (N, 3) and the sun, else 0."""
    # Parallel rays from many points are rays from one far eye: the same intersection code serves both.
    eye = (solid.centre + 60 * sun).astype(np.float32)
    towards = points - eye
    towards /= np.linalg.norm(towards, axis=1, keepdims=True)
    t, _, _ = _INTERSECT[solid.shape](solid, eye, towards)
    stopped: Floats = (t < FAR).astype(np.float32)
    return stopped


def _blur(image: Floats, radius: int) -> Floats:
    """Three box blurs one after another: close to a Gaussian."""
    kernel = np.ones(2 * radius + 1, np.float32) / (2 * radius + 1)
    blurred = image
    for axis in (0, 1) * 3:
        blurred = np.asarray(np.apply_along_axis(np.convolve, axis, blurred, kernel, "same"), np.float32)
    return blurred


def _shade(staged: PlacedScene, shadow: _Shadow, rays: Floats, normal: Floats, part: NDArray[np.int8]) -> Floats:
    """Colours (N, 3) in the range 0 to 1 of what the rays hit."""
    rgb = np.empty((len(rays), 3), np.float32)
    ground = part < 0
    point = EYE + _ground(rays[ground])[:, None] * rays[ground]
    # The floor fades into the wall like the paper backdrop of a photo studio, so that no line crosses the image.
    fade = np.clip((point[:, 2] - 0.6) / 2.2, 0, 1) ** 0.7
    floor = 0.10 + 0.82 * staged.background
    light = 0.55 + 0.45 * shadow(point)
    lift = 1.02 - 0.05 * np.clip(point[:, 1], 0, 4)
    rgb[ground] = (floor * (light * (1 - fade))[:, None]) + staged.background * (lift * fade)[:, None]

    hit = ~ground
    normal = normal[hit]
    colours = np.stack([solid.rgb for solid in staged.solids])[part[hit] // 8]
    toward_eye = staged.sun - rays[hit]
    toward_eye /= np.linalg.norm(toward_eye, axis=1, keepdims=True)
    diffuse = np.maximum(normal @ staged.sun, 0)
    gloss = 0.30 * np.maximum((normal * toward_eye).sum(1), 0) ** 40 * (diffuse > 0)
    ambient = 0.52 + 0.10 * normal[:, 1]
    rgb[hit] = colours * (ambient + 0.58 * diffuse)[:, None] + gloss[:, None]
    return np.clip(rgb, 0, 1)


def stream(seed: int, *, unseen: bool = False) -> Iterator[tuple[Scene, np.random.Generator]]:
    """Endless scenes with the generator that draws each. Scene `k` depends on the seed and `k` alone."""
    number = 0
    while True:
        rng = np.random.default_rng((seed, number))
        yield sample(rng, unseen=unseen), rng
        number += 1
