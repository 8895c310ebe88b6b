"""Captions: natural words, variety, and the same for the same random state."""

from __future__ import annotations

import numpy as np
import pytest

from imagewright.data.captions import STYLE_WORDS, caption, natural, with_article

FOX = {"kind": "sticker", "text": "fox", "tags": ["animal", "face", "sly"], "style": "flat"}
SCENE = {"kind": "scene", "text": "a blue cat above two red apples", "tags": [], "style": "noto"}


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("fox", "a fox"),
        ("umbrella", "an umbrella"),
        ("unicorn", "a unicorn"),
        ("hourglass", "an hourglass"),
        ("glasses", "glasses"),
        ("man: light skin tone, red hair", "a man with light skin and red hair"),
        ("handshake: light skin tone, dark skin tone", "a handshake with light and dark skin"),
        ("person: bald", "a person with no hair"),
        ("family: man, woman, boy", "a family of man, woman and boy"),
        ("flag: Puerto Rico", "the flag of Puerto Rico"),
        ("keycap: 1", "a keycap 1"),
    ],
)
def test_labels_become_words(label: str, words: str) -> None:
    assert with_article(natural(label)) == words


def test_the_same_state_gives_the_same_caption_and_many_states_many() -> None:
    drawn = [caption(FOX, np.random.default_rng([7, i])) for i in range(400)]
    assert drawn == [caption(FOX, np.random.default_rng([7, i])) for i in range(400)]
    assert len(set(drawn)) > 40
    assert 0.2 < drawn.count("fox") / 400 < 0.5
    assert any("sly" in text for text in drawn)
    assert all("noto" not in text and "fluent" not in text for text in drawn)
    assert 0.1 < sum("flat" in text for text in drawn) / 400 < 0.4


def test_a_scene_keeps_its_exact_words() -> None:
    drawn = {caption(SCENE, np.random.default_rng(i)) for i in range(200)}
    styled = {f"{SCENE['text']}, {word} style" for word in STYLE_WORDS["noto"]}
    assert drawn == {SCENE["text"], *styled}


def test_a_users_caption_stands_as_written_without_style_or_tags() -> None:
    record = {"kind": "picture", "text": "My Red Bike", "tags": [], "style": ""}
    assert {caption(record, np.random.default_rng(i)) for i in range(50)} == {"My Red Bike"}
