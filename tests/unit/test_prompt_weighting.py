"""The web UI's rules for weights in prompts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.pipelines.catalogue import catalogue
from farm.pipelines.prompt_weighting import may_matter, weighs_prompts
from tests.contract.families.tokenizers import clip_tokenizer
from workers.pipelines.prompt_weighting import Chunk, Fragment, chunks_of, parse

#: The examples of the web UI's own documentation of its parser.
EXAMPLES = {
    "normal text": [("normal text", 1.0)],
    "an (important) word": [("an ", 1.0), ("important", 1.1), (" word", 1.0)],
    "(unbalanced": [("unbalanced", 1.1)],
    r"\(literal\]": [("(literal]", 1.0)],
    "(unnecessary)(parens)": [("unnecessaryparens", 1.1)],
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).": [
        ("a ", 1.0),
        ("house", 1.573),
        (" ", 1.1),
        ("on", 1.0),
        (" a ", 1.1),
        ("hill", 0.55),
        (", sun, ", 1.1),
        ("sky", 1.4641),
        (".", 1.1),
    ],
    "": [],
    "one BREAK two": [("one", 1.0), (None, 1.0), ("two", 1.0)],
    "BREAKFAST": [("BREAKFAST", 1.0)],
    "(a: 1.5 ) :) b:2": [("a", 1.5), (" :) b:2", 1.0)],
    "[less]": [("less", 1 / 1.1)],
}


@pytest.mark.parametrize(("prompt", "expected"), EXAMPLES.items())
def test_prompts_are_read_as_the_web_ui_reads_them(prompt: str, expected: list[tuple[str | None, float]]) -> None:
    found = parse(prompt)
    assert [one.text for one in found] == [text for text, _ in expected]
    assert [one.weight for one in found] == pytest.approx([weight for _, weight in expected])


def weights_by_letter(prompt: str) -> list[tuple[str, float]]:
    """Another reading of the rules, letter by letter, for prompts without numbers and breaks: each with its weight."""
    found: list[list[float | str]] = []
    opened: list[tuple[str, int]] = []
    escaped = False
    for letter in prompt:
        close = {")": "(", "]": "["}.get(letter)
        if escaped and letter in "()[]\\":
            found.append([letter, 1.0])
            escaped = False
            continue
        escaped = letter == "\\"
        if escaped:
            continue
        if letter in "([":
            opened.append((letter, len(found)))
        elif close is not None and any(kind == close for kind, _ in opened):
            last = max(place for place, (kind, _) in enumerate(opened) if kind == close)
            for one in found[opened.pop(last)[1] :]:
                one[1] *= 1.1 if close == "(" else 1 / 1.1  # type: ignore[operator]
        else:
            found.append([letter, 1.0])
    for kind, start in opened:
        for one in found[start:]:
            one[1] *= 1.1 if kind == "(" else 1 / 1.1  # type: ignore[operator]
    return [(str(letter), float(weight)) for letter, weight in found]


@given(st.text(alphabet="ab ()[]", max_size=30))
def test_two_readings_of_the_rules_agree(prompt: str) -> None:
    found = [(letter, one.weight) for one in parse(prompt) for letter in one.text or ""]
    expected = weights_by_letter(prompt)
    assert [letter for letter, _ in found] == [letter for letter, _ in expected]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in expected])


def tokens(text: str) -> list[int]:
    found: list[int] = clip_tokenizer()(text, add_special_tokens=False)["input_ids"]
    return found


def test_a_prompt_of_one_chunk_has_the_tokens_of_its_text() -> None:
    assert chunks_of("a red cube", clip_tokenizer(), 75) == [
        Chunk(tokens("a red cube"), [1.0] * len(tokens("a red cube")))
    ]
    assert chunks_of("", clip_tokenizer(), 75) == [Chunk()]


def test_a_longer_prompt_is_cut_into_chunks_and_nothing_is_lost() -> None:
    prompt = "red blue " * 60
    chunks = chunks_of(prompt, clip_tokenizer(), 75)
    assert len(chunks) > 1
    assert all(len(chunk.tokens) == 75 for chunk in chunks[:-1])
    assert [token for chunk in chunks for token in chunk.tokens] == tokens(prompt)


def test_a_chunk_ends_at_a_comma_that_is_near_its_end() -> None:
    words = len(tokens("red"))
    prompt = "red " * (60 // words) + ", " + "blue " * (60 // words)
    first, second = chunks_of(prompt, clip_tokenizer(), 75)
    assert first.tokens == tokens("red " * (60 // words) + ",")
    assert second.tokens == tokens("blue " * (60 // words))
    far = "red " * (40 // words) + ", " + "blue " * (60 // words)
    assert len(chunks_of(far, clip_tokenizer(), 75)[0].tokens) == 75


def test_a_break_begins_a_chunk() -> None:
    first, second = chunks_of("a (red:1.5) cube BREAK a table", clip_tokenizer(), 75)
    assert first.tokens == tokens("a ") + tokens("red") + tokens(" cube")
    assert set(first.weights) == {1.0, 1.5}
    assert second == Chunk(tokens("a table"), [1.0] * len(tokens("a table")))


def test_fragments_of_one_weight_are_one() -> None:
    assert parse("a(b)(c)d") == [Fragment("a"), Fragment("bc", 1.1), Fragment("d")]


def test_the_pipelines_of_stable_diffusion_weigh_prompts_and_others_do_not() -> None:
    names = {spec.name for spec in catalogue().pipelines() if weighs_prompts(spec)}
    assert {
        *("StableDiffusionPipeline", "StableDiffusionXLInpaintPipeline", "StableDiffusionControlNetPipeline"),
        *("LatentConsistencyModelPipeline", "AnimateDiffPipeline", "StableDiffusionXLAdapterPipeline"),
    } <= names
    assert not names & {
        "FluxPipeline",
        "StableDiffusion3Pipeline",
        "KandinskyV22CombinedPipeline",
        "HunyuanDiTPipeline",
    }


@pytest.mark.parametrize(
    "prompt", ["a (red:1.2) ball", "a [red] ball", r"a ball \(red\)", "a ball BREAK blue", "a " * 40]
)
def test_what_the_rules_may_read_otherwise_is_found(prompt: str) -> None:
    assert may_matter(prompt)


@pytest.mark.parametrize("prompt", ["", "a red ball on a blue background", "BREAKFAST: 8:30, no breaks"])
def test_a_plain_short_prompt_is_left_to_the_pipeline(prompt: str) -> None:
    assert not may_matter(prompt)
