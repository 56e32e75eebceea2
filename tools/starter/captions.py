"""Captions of scenes: the many ways to say the same image, and the plain one used for measuring.

A caption settles what it leaves out by convention, so that no two scenes compete for one prompt: a thing without a
place stands in the centre, one without a size is medium, and of two things joined by "and" the first stands on the
left. Only the background may be left open, and is then any colour.
"""

from typing import Final

import numpy as np

from tools.starter.scenes import Colour, Place, Scene, SceneShape, Size, Thing

#: Other words for the same; the first is the one most often said.
COLOUR_WORDS: Final[dict[Colour, tuple[str, ...]]] = {
    Colour.RED: ("red", "crimson", "scarlet"),
    Colour.GREEN: ("green", "emerald", "lime"),
    Colour.BLUE: ("blue", "navy", "azure"),
    Colour.YELLOW: ("yellow", "golden", "lemon"),
    Colour.ORANGE: ("orange", "amber", "tangerine"),
    Colour.PURPLE: ("purple", "violet", "indigo"),
    Colour.CYAN: ("cyan", "turquoise", "teal"),
    Colour.PINK: ("pink", "rose", "magenta"),
    Colour.WHITE: ("white", "ivory", "snowy"),
    Colour.BLACK: ("black", "ebony", "dark"),
}
SHAPE_WORDS: Final[dict[SceneShape, tuple[str, ...]]] = {
    SceneShape.SPHERE: ("sphere", "ball", "globe", "orb"),
    SceneShape.CUBE: ("cube", "box", "block", "dice"),
    SceneShape.CONE: ("cone", "cone", "pyramid"),
    SceneShape.CYLINDER: ("cylinder", "can", "tube", "barrel"),
}
SIZE_WORDS: Final[dict[Size, tuple[str, ...]]] = {
    Size.SMALL: ("small", "tiny", "little"),
    Size.MEDIUM: ("",),
    Size.LARGE: ("large", "big", "huge"),
}
OPENINGS: Final = (
    "an image of",
    "an image of",
    "a photo of",
    "a render of",
    "a 3d render of",
    "a painting of",
    "a drawing of",
    "please draw",
    "show me",
    "make",
    "there is",
    "this is",
)
CLOSINGS: Final = (
    "studio light",
    "high quality",
    "soft shadow",
    "beautiful",
    "highly detailed",
    "4k",
    "product photo",
    "minimal",
    "please",
    "sharp",
)


def plain(scene: Scene, *, placed: bool = True) -> str:
    """The plainest prompt that says everything: "a large red cube on the left on a blue background".

    Args:
        scene: what to say.
        placed: say where a single thing stands. Off, for prompts to which something else gives the layout.
    """
    nouns = [_article(f"{thing.size.value if thing.size is not Size.MEDIUM else ''} {thing.colour} {thing.shape}")
             for thing in scene.things]  # fmt: skip
    if len(nouns) == 2:
        said = f"{nouns[0]} and {nouns[1]}"
    else:
        said = nouns[0] + (f" {_PLACE_WORDS[scene.things[0].place][0]}" if placed else "")
    return f"{said} on {_article(scene.background)} background"


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One of the many ways to say the scene."""
    first, *others = scene.things
    said = _pair(first, others[0], rng) if others else _alone(first, rng)
    if rng.random() < 0.94:
        said = _with_background(said, scene.background, rng)
    if rng.random() < 0.35:
        said = f"{_one(OPENINGS, rng)} {said}"
    if rng.random() < 0.35:
        said = f"{said}, {_one(CLOSINGS, rng)}"
    if rng.random() < 0.1:
        said = _disturb(said, rng)
    return said


_PLACE_WORDS: Final[dict[Place, tuple[str, ...]]] = {
    Place.LEFT: ("on the left", "at the left", "on the left side", "left"),
    Place.CENTER: ("in the center", "in the middle", "in the centre", ""),
    Place.RIGHT: ("on the right", "at the right", "on the right side", "right"),
}


def _one(choices: tuple[str, ...], rng: np.random.Generator) -> str:
    return choices[rng.integers(len(choices))]


def _word(choices: tuple[str, ...], rng: np.random.Generator) -> str:
    """The usual word seven times out of ten, else any of them."""
    return choices[0] if rng.random() < 0.7 else _one(choices, rng)


def _article(noun: str) -> str:
    noun = noun.strip()
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _noun(thing: Thing, rng: np.random.Generator) -> str:
    said = " ".join(
        word
        for word in (
            _word(SIZE_WORDS[thing.size], rng),
            _word(COLOUR_WORDS[thing.colour], rng),
            _word(SHAPE_WORDS[thing.shape], rng),
        )
        if word
    )
    form = rng.random()
    if form < 0.86:
        return _article(said)
    return f"the {said}" if form < 0.9 else said


def _alone(thing: Thing, rng: np.random.Generator) -> str:
    return f"{_noun(thing, rng)} {_one(_PLACE_WORDS[thing.place], rng)}".strip()


def _pair(left: Thing, right: Thing, rng: np.random.Generator) -> str:
    first, second = _noun(left, rng), _noun(right, rng)
    forms = (
        f"{first} and {second}",
        f"{first} and {second}",
        f"{first} next to {second}",
        f"{first} beside {second}",
        f"{first} left of {second}",
        f"{first} to the left of {second}",
        f"{second} right of {first}",
        f"{second} to the right of {first}",
        f"{first} on the left and {second} on the right",
        f"{second} on the right and {first} on the left",
        f"{first} on the left, {second} on the right",
    )
    return _one(forms, rng)


def _with_background(said: str, colour: Colour, rng: np.random.Generator) -> str:
    word = _word(COLOUR_WORDS[colour], rng)
    a_word = _article(word)
    forms = (
        f"{said} on {a_word} background",
        f"{said} on {a_word} background",
        f"{said}, {word} background",
        f"{said} with {a_word} background",
        f"{said} against {a_word} background",
        f"{said} in front of {a_word} wall",
        f"{said} in {a_word} room",
        f"{said} on {a_word} floor",
        f"on {a_word} background, {said}",
        f"{word} background, {said}",
    )
    return _one(forms, rng)


def _disturb(said: str, rng: np.random.Generator) -> str:
    """Puts a word from nowhere somewhere, so that unknown words learn to be harmless."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    stray = "".join(letters[i] for i in rng.integers(0, 26, rng.integers(2, 8)))
    words = said.split(" ")
    words.insert(int(rng.integers(0, len(words) + 1)), stray)
    return " ".join(words)
