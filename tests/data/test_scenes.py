"""Scenes: what the caption says is what is painted, and what is held out never appears."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sticker_fixtures import read_records

from imagewright.data.nouns import NUMBERS, noun, plural
from imagewright.data.recolour import COLOURS, named_share, recolour, to_oklab
from imagewright.data.scenes import RELATIONS, Studio, compose, credits_of, things, write_unseen_scenes


@pytest.fixture
def scenes(small_set: Path) -> list[dict[str, Any]]:
    return [record for record in read_records(small_set) if record["kind"] == "scene"]


def test_every_kind_of_scene_is_there(scenes: list[dict[str, Any]]) -> None:
    assert any(scene["relation"] for scene in scenes)
    assert any(scene["background"] for scene in scenes)
    assert {scene["objects"][0]["count"] for scene in scenes} == {1, 2, 3, 4}
    assert any(part["colour"] for scene in scenes for part in scene["objects"])


def test_only_training_stickers_of_one_style_and_no_unseen_pair(scenes: list[dict[str, Any]], small_set: Path) -> None:
    split = {(r["style"], r["base"]): r["split"] for r in read_records(small_set) if r["kind"] == "sticker"}
    for scene in scenes:
        assert scene["split"] == "train" and scene["licence"]
        for part in scene["objects"]:
            assert part["style"] == scene["style"]
            assert split[part["style"], part["base"]] == "train"
        if len(scene["objects"]) == 2:
            a, b = sorted(part["base"] for part in scene["objects"])
            assert int(hashlib.sha256(f"{a}+{b}".encode()).hexdigest(), 16) % 10 != 0


def test_the_unseen_pairs_would_have_been_drawn_otherwise(small_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagewright.data.scenes.unseen_pair", lambda a, b: False)
    stickers = [record for record in read_records(small_set) if record["kind"] == "sticker"]
    studio = Studio(small_set, small_set, 48, 0, things(stickers), credits_of(stickers))
    pairs = {tuple(sorted(p["base"] for p in compose(studio, i)["objects"])) for i in range(60)}
    assert any(int(hashlib.sha256("+".join(p).encode()).hexdigest(), 16) % 10 == 0 for p in pairs if len(p) == 2)


def test_the_caption_says_the_truth_record(scenes: list[dict[str, Any]]) -> None:
    for scene in scenes:
        text = scene["text"]
        for part in scene["objects"]:
            name = part["label"] if part["count"] == 1 else plural(part["label"])
            phrase = f"{part['colour']} {name}" if part["colour"] else name
            number = NUMBERS.get(part["count"])
            wanted = [f"{number} {phrase}"] if number else [f"a {phrase}", f"an {phrase}"]
            assert any(words in text for words in wanted), (text, wanted)
        if scene["relation"]:
            assert f" {RELATIONS[scene['relation']]} " in text
        assert text.endswith(f"{scene['background']} background") == bool(scene["background"])


def test_counts_boxes_and_positions_are_exact(scenes: list[dict[str, Any]], small_set: Path) -> None:
    for scene in scenes:
        alpha = pixels_of(small_set, scene)[..., 3]
        boxes = [box for part in scene["objects"] for box in part["boxes"]]
        assert [len(part["boxes"]) for part in scene["objects"]] == [p["count"] for p in scene["objects"]]
        for a, b in itertools.combinations(boxes, 2):
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], "boxes overlap"
        if scene["relation"]:
            a, b = boxes
            holds = {
                "left": a[2] <= b[0],
                "right": b[2] <= a[0],
                "above": a[3] <= b[1],
                "below": b[3] <= a[1],
            }
            assert holds[scene["relation"]], scene
        if scene["background"] is None:
            outside = alpha.copy()
            for x0, y0, x1, y1 in boxes:
                inside = alpha[y0:y1, x0:x1]
                assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()
                outside[y0:y1, x0:x1] = 0
            assert not outside.any()
        else:
            assert (alpha == 255).all()


def test_colours_and_backgrounds_are_the_named_ones(scenes: list[dict[str, Any]], small_set: Path) -> None:
    checked = 0
    for scene in scenes:
        pixels = pixels_of(small_set, scene)
        if scene["background"]:
            x0, y0, x1, y1 = scene["objects"][0]["box"]
            ground = pixels.copy()
            for part in scene["objects"]:
                for x0, y0, x1, y1 in part["boxes"]:
                    ground[y0:y1, x0:x1] = 0
            assert named_share(ground, scene["background"]) > 0.95, scene["text"]
        elif scene["objects"][0]["colour"]:
            x0, y0, x1, y1 = scene["objects"][0]["box"]
            assert named_share(pixels[y0:y1, x0:x1], scene["objects"][0]["colour"]) > 0.5, scene["text"]
            checked += 1
    assert checked > 5


def test_a_scene_is_a_function_of_seed_and_index(small_set: Path, tmp_path: Path) -> None:
    (tmp_path / "images" / "scenes").mkdir(parents=True)
    stickers = [record for record in read_records(small_set) if record["kind"] == "sticker"]
    studio = Studio(small_set, tmp_path, 48, 3, things(stickers), credits_of(stickers))
    assert compose(studio, 70) == compose(studio, 70)
    assert compose(studio, 70)["sha256"] != compose(studio, 71)["sha256"]


def test_a_test_of_unseen_pairs_shows_only_those(small_set: Path, tmp_path: Path) -> None:
    scenes = write_unseen_scenes(small_set, tmp_path / "unseen", count=12, size=48)
    assert read_records(tmp_path / "unseen") == scenes
    for scene in scenes:
        a, b = sorted(part["base"] for part in scene["objects"])
        assert int(hashlib.sha256(f"{a}+{b}".encode()).hexdigest(), 16) % 10 == 0
        assert scene["split"] == "unseen_pairs" and scene["relation"]
        assert pixels_of(tmp_path / "unseen", scene).shape == (48, 48, 4)


def pixels_of(folder: Path, scene: dict[str, Any]) -> NDArray[np.uint8]:
    return np.asarray(Image.open(folder / scene["file_name"]))


def shaded_ball(hue: tuple[int, int, int], side: int = 32) -> NDArray[np.uint8]:
    """A disc of one hue that darkens downwards, with a white eye and a black outline."""
    y, x = np.mgrid[:side, :side] - side / 2 + 0.5
    radius = np.hypot(x, y)
    shade = (1.1 - 0.5 * (y / side + 0.5))[..., None]
    pixels = np.zeros((side, side, 4), np.uint8)
    pixels[..., :3] = np.clip(np.array(hue) * shade, 0, 255)
    pixels[radius > side * 0.44, :3] = 10
    pixels[np.hypot(x - 4, y + 4) < 3, :3] = 255
    pixels[..., 3] = np.where(radius < side * 0.48, 255, 0)
    return pixels


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("hue", [(230, 60, 40), (90, 160, 230), (200, 200, 205)])
def test_a_recoloured_picture_has_the_named_hue_and_its_own_shades(hue: tuple[int, int, int], colour: str) -> None:
    ball = shaded_ball(hue)
    painted = recolour(ball, colour)
    assert np.array_equal(painted[..., 3], ball[..., 3])
    assert named_share(painted, colour) > 0.6
    body = np.s_[20:28, 14:18]
    lab, target = to_oklab(painted[body][..., :3] / 255.0), to_oklab(np.array(COLOURS[colour]) / 255.0)
    if np.hypot(*target[1:]) > 0.03:
        apart = np.angle(np.exp(1j * (np.arctan2(lab[..., 2], lab[..., 1]) - np.arctan2(target[2], target[1]))))
        assert np.abs(np.degrees(apart)).max() < 25
    else:
        assert np.hypot(lab[..., 1], lab[..., 2]).max() < 0.03
    light = lab[..., 0].mean(1)
    assert (np.diff(light) <= 1e-3).all() and light[0] > light[-1], "darker downwards, as before"


@pytest.mark.parametrize(
    ("name", "many"),
    [
        ("cat", "cats"),
        ("fox", "foxes"),
        ("mouse", "mice"),
        ("fish", "fish"),
        ("strawberry", "strawberries"),
        ("toy", "toys"),
        ("peach", "peaches"),
        ("scarf", "scarves"),
    ],
)
def test_plurals(name: str, many: str) -> None:
    assert plural(name) == many


def test_nouns_are_short_concrete_and_one_to_a_picture() -> None:
    assert noun("fox", "animal-mammal") == "fox"
    assert noun("red apple", "food-fruit") == "apple"
    assert noun("grinning face", "face-smiling") is None
    assert noun("grapes", "food-fruit") is None
    assert noun("one o’clock", "time") is None
    assert noun("face with head-bandage", "animal-mammal") is None
