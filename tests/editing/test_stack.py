"""Stacks of edits: nothing wears out, steps are taken back, and strangers' records choose nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from editing.painters import any_hole
from PIL import Image

from imagewright import chain, verbs
from imagewright.editing import masks, place
from imagewright.editing import stack as stacks
from imagewright.editing.stack import Beside, Stack, Step
from imagewright.errors import PictureError, RequestError, UnsupportedError
from imagewright.pictures import encode, open_picture
from imagewright.provenance import metadata
from imagewright.request import ImageRequest, ImageResult
from imagewright.workshop import Workshop

PAINTER = "fake/painter"
WORKSHOP = Workshop()


def saved(result: ImageResult, path: Path, index: int = 0) -> Path:
    record = result.records[index]
    output_format = record["output_format"]
    options = metadata.save_options(record, output_format)
    path.write_bytes(encode(result[index], output_format, record["output_compression"], **options))
    return path


def photo(size: tuple[int, int] = (96, 96)) -> Image.Image:
    values = np.random.default_rng(5).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(values)


@pytest.fixture
def original(tmp_path: Path) -> Path:
    photo().save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def fill(picture: Path | Image.Image, region: str, seed: int, **fields: Any) -> ImageResult:
    asked = {"model": PAINTER, "seed": seed, "workshop": WORKSHOP, **fields}
    return verbs.fill(picture, f"edit {seed}", region=region, **asked)


def pixels(picture: Path | Image.Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.asarray(picture if isinstance(picture, Image.Image) else open_picture(picture))


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_ten_edits_wear_nothing_out(original: Path, kind: str) -> None:
    """Saved and opened between all of them, also as JPEG, each edit changes its own region only."""
    regions = [f"{9 * index},{7 * index},9,9" for index in range(10)]
    path, touched = original, np.zeros((96, 96), bool)
    suffix = "jpg" if kind == "jpeg" else "png"
    for index, region in enumerate(regions):
        result = fill(path, region, index, output_format=kind)
        assert not [one for one in result.adjustments if one.field == "edits"]
        path = saved(result, original.with_name(f"edit-{index}.{suffix}"))
        touched |= masks.hole(masks.region(region, (96, 96)))
        if index == 0:
            first = pixels(result[0])
    assert np.array_equal(pixels(result[0])[~touched], pixels(original)[~touched])
    assert np.array_equal(pixels(result[0])[:7, :9], first[:7, :9]), "the first edit is as it was"
    assert not np.array_equal(first[:9, :9], pixels(original)[:9, :9])
    stack, _ = verbs.stack_of(path)
    assert len(stack.steps) == 10 and stack.original.file == "photo.png"


def test_a_stack_is_the_same_made_at_once(original: Path) -> None:
    path = original
    for index in range(3):
        path = saved(fill(path, f"{10 * index},10,20,20", index), original.with_name(f"{index}.png"))
    stack, folders = verbs.stack_of(path)
    again = chain.replayed(stack, WORKSHOP, folders, trusted=[PAINTER])
    assert np.array_equal(pixels(again), pixels(path)) and stack.result == place.digest(again)


def test_undo_and_branch(original: Path) -> None:
    one = saved(fill(original, "0,0,20,20", 1), original.with_name("one.png"))
    two = saved(fill(one, "30,30,20,20", 2), original.with_name("two.png"))
    back = verbs.undo(two, workshop=WORKSHOP, model=PAINTER)
    assert np.array_equal(pixels(back[0]), pixels(one))
    path = saved(back, original.with_name("back.png"))
    assert [step.told() for step in verbs.stack_of(path)[0].steps] == ["fill 20x20 at 0,0 edit 1"]
    branch = saved(fill(path, "50,50,9,9", 3), original.with_name("branch.png"))
    assert [step.fields["seed"] for step in verbs.stack_of(branch)[0].steps] == [1, 3]
    whole = verbs.undo(two, 2, workshop=WORKSHOP)
    assert np.array_equal(pixels(whole[0]), pixels(original))
    with pytest.raises(RequestError, match="3 steps"):
        verbs.undo(two, 3, workshop=WORKSHOP)
    with pytest.raises(PictureError, match="no edits"):
        verbs.undo(original, workshop=WORKSHOP)


def test_undoing_all_gives_the_original_its_own_record_back(tmp_path: Path) -> None:
    made = saved(WORKSHOP.make(ImageRequest(prompt="a fox", model=PAINTER, seed=4)), tmp_path / "fox.png")
    edited = saved(fill(made, "0,0,4,4", 1), tmp_path / "edited.png")
    record = verbs.undo(edited, workshop=WORKSHOP).records[0]
    assert (record["prompt"], record["seed"], "edits" in record) == ("a fox", 4, False)


@pytest.mark.parametrize(
    "step",
    [
        lambda path: verbs.expand(path, "x", right=30, up="50%", model=PAINTER, seed=2),
        lambda path: verbs.expand(path, "x", pan="left", model=PAINTER, seed=2),
        lambda path: verbs.vary(path, "x", strong=True, model=PAINTER, seed=2),
        lambda path: verbs.edit(path, "make it blue", model=PAINTER, seed=2),
        lambda path: verbs.restyle(path, "x", style="flat", model=PAINTER, seed=2),
        lambda path: verbs.restyle(path, "x", like=path.with_name("photo.png"), model=PAINTER, seed=2),
        lambda path: verbs.blend([path, path.with_name("photo.png")], "x", model=PAINTER, seed=2),
        lambda path: verbs.upscale(path, 2),
        lambda path: verbs.fill(path, region="40,40,20,20"),
        lambda path: verbs.expand(path, left=10, down=20),
        lambda path: fill(path, "0,0,96,50", 4, n=3),
    ],
)
def test_every_verb_is_a_step_that_can_be_made_again(original: Path, step: Any) -> None:
    before = saved(fill(original, "0,0,20,20", 1), original.with_name("before.png"))
    result = step(before)
    last = len(result) - 1
    path = saved(result, original.with_name("after.png"), last)
    stack, folders = verbs.stack_of(path)
    assert len(stack.steps) == 2
    again = chain.replayed(stack, WORKSHOP, folders, trusted=[PAINTER])
    assert np.array_equal(pixels(again), pixels(path))
    assert result.records[last]["verb"] == stack.steps[-1].verb


def test_a_lossy_file_whose_original_is_gone_is_edited_as_it_is(original: Path) -> None:
    path = saved(fill(original, "0,0,20,20", 1, output_format="jpeg"), original.with_name("one.jpg"))
    original.unlink()
    result = fill(path, "30,30,20,20", 2)
    (said,) = (one for one in result.adjustments if one.field == "edits")
    assert "photo.png" in said.reason
    assert np.array_equal(pixels(result[0])[:20, :20], pixels(path)[:20, :20])
    assert Stack.of(result.records[0]).original.file == "one.jpg"  # type: ignore[union-attr]


def test_the_original_can_be_given(original: Path, tmp_path: Path) -> None:
    path = saved(fill(original, "0,0,20,20", 1, output_format="jpeg"), original.with_name("one.jpg"))
    moved = original.rename(tmp_path / "elsewhere.png")
    result = fill(path, "30,30,20,20", 2, original=moved)
    assert len(Stack.of(result.records[0]).steps) == 2  # type: ignore[union-attr]
    other = Image.new("RGB", (96, 96))
    (said,) = (one for one in fill(path, "0,0,9,9", 2, original=other).adjustments if one.field == "edits")
    assert "not the picture that was edited" in said.reason


def test_a_picture_changed_by_another_program_is_edited_as_it_is(original: Path) -> None:
    result = fill(original, "0,0,20,20", 1)
    painted = result[0].copy()
    painted.paste((255, 0, 0), (60, 60, 70, 70))
    path = original.with_name("painted.png")
    path.write_bytes(encode(painted, "png", **metadata.save_options(result.records[0], "png")))
    again = fill(path, "30,30,20,20", 2)
    (said,) = (one for one in again.adjustments if one.field == "edits")
    assert "changed since" in said.reason
    assert pixels(again[0])[65, 65].tolist() == [255, 0, 0]


def test_pictures_in_memory_keep_their_stack() -> None:
    result = fill(photo(), "0,0,20,20", 1)
    again = fill(result[0], "30,30,20,20", 2)
    assert len(Stack.of(again.records[0]).steps) == 2  # type: ignore[union-attr]
    assert again[0].info["imagewright"]["edits"]["steps"][0]["seed"] == 1


def test_a_record_chooses_no_model_by_itself(original: Path) -> None:
    path = saved(fill(original, "0,0,20,20", 1), original.with_name("one.png"))
    two = saved(fill(path, "0,0,20,20", 1), original.with_name("two.png"))
    with pytest.raises(PictureError, match="fake/painter") as caught:
        verbs.undo(two, workshop=WORKSHOP)
    assert "--model fake/painter" in caught.value.fix


@pytest.mark.parametrize("name", ["../photo.png", "/etc/passwd", "", ".", "sub/photo.png"])
def test_a_record_reads_no_file_but_a_neighbour(original: Path, name: str) -> None:
    (original.parent / "sub").mkdir()
    sha = place.digest(photo())
    photo().save(original.parent / "sub" / "photo.png")
    assert Beside(name, sha).path([original.parent / "sub", original.parent]) is None
    assert Beside("photo.png", sha).path([original.parent]) == original


DAMAGE: dict[str, Any] = {
    "no steps": {"original": {"file": "a", "sha256": "b"}, "result": ""},
    "not a dict": 3,
    "a step of nothing": {"original": {"file": "a", "sha256": "b"}, "result": "", "steps": [3]},
    "a large mask": {
        "original": {"file": "a", "sha256": "b"},
        "result": "",
        "steps": [{"verb": "fill", "engine": None, "mask": {"size": [10**9, 10**9], "box": [0, 0, 10**9, 10**9]}}],
    },
    "a broken mask": {
        "original": {"file": "a", "sha256": "b"},
        "result": "",
        "steps": [{"verb": "fill", "engine": None, "mask": {"size": [4, 4], "box": [0, 0, 4, 4], "png": "AAAA"}}],
    },
    "endless": {
        "original": {"file": "a", "sha256": "b"},
        "result": "",
        "steps": [{"verb": "upscale", "factor": 2, "engine": None}] * 5000,
    },
    "no words": {"original": {"file": 3, "sha256": "b"}, "result": "", "steps": []},
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_stack_is_refused_or_said(original: Path, what: str) -> None:
    with pytest.raises(PictureError, match="damaged"):
        Stack.of({"edits": DAMAGE[what]})
    record = {**fill(original, "0,0,9,9", 1).records[0], "edits": DAMAGE[what]}
    path = original.with_name("damaged.png")
    path.write_bytes(encode(photo(), "png", **metadata.save_options(record, "png")))
    assert any(one.field == "edits" for one in fill(path, "0,0,9,9", 1).adjustments)


@pytest.mark.parametrize("fields", [{"prompt": 3}, {"prompt": ["x"]}, {"prompt": "x", "size": "12"}, {"prompt": ""}])
def test_a_step_of_damaged_fields_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(PictureError, match="damaged"):
        Step("fill", fields).again(())


@pytest.mark.parametrize("seed", range(20))
def test_masks_survive_packing(seed: int) -> None:
    random = np.random.default_rng(seed)
    width, height = (int(side) for side in random.integers(1, 60, 2))
    hole = any_hole(random, (width, height))
    step = Step("fill", {"prompt": "x"}, mask=masks.mask_of(hole))
    again = Step.from_json(json.loads(json.dumps(step.to_json())))
    assert again.mask is not None and np.array_equal(masks.hole(again.mask), hole)


def test_a_mask_too_large_to_keep_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch, original: Path) -> None:
    monkeypatch.setattr(stacks, "MAX_MASK", 100)
    noise = masks.mask_of(np.random.default_rng(1).random((96, 96)) < 0.5)
    result = verbs.fill(original, "x", mask=noise, model=PAINTER, seed=1, workshop=WORKSHOP)
    path = saved(result, original.with_name("one.png"))
    assert not verbs.stack_of(path)[0].steps[0].whole
    again = fill(path, "0,0,9,9", 2)
    assert len(Stack.of(again.records[0]).steps) == 2, "a lossless file needs no step made again"  # type: ignore[union-attr]
    with pytest.raises(PictureError, match="not all of it"):
        verbs.undo(saved(again, original.with_name("two.png")), workshop=WORKSHOP, model=PAINTER)


def test_the_words_of_a_picture() -> None:
    before = Stack(Beside("a.png", ""), prompt="a fox")
    hat = Step("fill", {"prompt": "a hat"}, mask=masks.whole((4, 4)))
    blue = Step("edit", {"prompt": "make it blue", "instruction": True})
    dog = Step("vary", {"prompt": "a dog"})
    assert Stack(before.original, (hat, blue), prompt="a fox").words() == "a fox"
    assert Stack(before.original, (hat, dog, hat), prompt="a fox").words() == "a dog"


def test_without_words_those_of_the_picture_count() -> None:
    made = WORKSHOP.make(ImageRequest(prompt="a fox", model=PAINTER, seed=4))[0]
    result = verbs.vary(made, model=PAINTER, seed=1)
    assert result.records[0]["prompt"] == "a fox" and result.records[0]["strength"] == verbs.SUBTLE
    assert [one.field for one in result.adjustments] == ["prompt"]
    assert verbs.vary(made, strong=True, model=PAINTER).records[0]["strength"] == verbs.STRONG
    assert verbs.vary(made, strength=0.5, model=PAINTER).records[0]["strength"] == 0.5


def test_edit_without_a_mask_instructs_a_model_that_understands_it() -> None:
    record = verbs.edit(photo(), "make it blue", model=PAINTER, seed=1).records[0]
    assert record["instruction"] is True and record["strength"] == 1.0
    result = verbs.edit(photo((16, 16)), "a red apple", model="embedded/stickers-diffusion", num_inference_steps=1)
    assert [one.field for one in result.adjustments] == ["instruction"] or result.records[0]["instruction"]


def test_a_model_that_cannot_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="image and mask"):
        verbs.fill(photo(), "x", region="0,0,9,9", model="fake/blocks")


def test_what_may_change_is_said_in_one_way() -> None:
    for where in ({}, {"region": "0,0,4,4", "mask": masks.whole((96, 96))}):
        with pytest.raises(RequestError, match="Where may"):
            verbs.fill(photo(), "x", model=PAINTER, **where)  # type: ignore[arg-type]
    result = verbs.edit(photo(), "x", region="0,0,48,96", invert=True, model=PAINTER, seed=1)
    assert np.array_equal(pixels(result[0])[:, :48], pixels(photo())[:, :48])
    assert not np.array_equal(pixels(result[0])[:, 48:], pixels(photo())[:, 48:])


def test_upscaling_a_photograph_claims_no_model() -> None:
    from imagewright.provenance.record import source_type

    assert source_type(verbs.upscale(photo(), 2).records[0]) == "algorithmicallyEnhanced"
    edited = fill(photo(), "0,0,9,9", 1)
    assert source_type(verbs.upscale(edited[0], 2).records[0]) == "compositeWithTrainedAlgorithmicMedia"
    for wrong in (3, 0):
        with pytest.raises(RequestError):
            verbs.upscale(photo(), wrong)
    with pytest.raises(RequestError, match="4096"):
        verbs.upscale(Image.new("L", (2000, 2)), 4)


@pytest.mark.parametrize(
    ("weights", "counts"),
    [([1, 1], [1, 1]), ([2, 1], [2, 1]), ([0.7, 0.3], [7, 3]), ([100, 1], [15, 1]), ([1, 1, 2], [1, 1, 2])],
)
def test_weights_become_small_numbers(weights: list[float], counts: list[int]) -> None:
    assert verbs.shares(weights, len(weights)) == counts


@pytest.mark.parametrize("weights", [[1], [1, 0], [1, -1], [1, float("nan")], [1, float("inf")]])
def test_weights_that_cannot_be_are_refused(weights: list[float]) -> None:
    with pytest.raises(RequestError, match="weights"):
        verbs.shares(weights, 2)


def test_a_blend_takes_the_words_of_all_its_pictures() -> None:
    made = [WORKSHOP.make(ImageRequest(prompt=f"a {name}", model=PAINTER, seed=4))[0] for name in ("fox", "hat")]
    result = verbs.blend(made, weights=[2, 1], model=PAINTER, seed=1)
    assert result.records[0]["prompt"] == "a fox and a hat"
    assert len(result.records[0]["images_sha256"]) == 2, "the first once more, and the second"
    with pytest.raises(RequestError, match="too many"):
        verbs.blend(made * 9, model=PAINTER)
