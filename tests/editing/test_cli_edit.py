"""The commands that edit, on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from imagewright import cli
from imagewright.pictures import open_picture
from imagewright.provenance import metadata

PAINTER = ("--model", "fake/painter")


@pytest.fixture(autouse=True)
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`photo.png`, 48x32, in the folder where the commands run."""
    monkeypatch.chdir(tmp_path)
    values = np.random.default_rng(5).integers(0, 256, (32, 48, 3), np.uint8)
    Image.fromarray(values).save("photo.png")
    return tmp_path / "photo.png"


def pixels(name: str) -> np.ndarray:
    return np.asarray(open_picture(name))


def run(*arguments: str) -> int:
    return cli.run([*arguments, *PAINTER])


def test_fill_writes_beside_the_picture_and_never_over_it(capsys: pytest.CaptureFixture[str]) -> None:
    before = Path("photo.png").read_bytes()
    for name in ("photo-fill.png", "photo-fill-2.png"):
        assert run("fill", "photo.png", "a hat", "--region", "0,0,8,8", "--seed", "1") == 0
        told = capsys.readouterr()
        assert told.out.startswith(f"{name}  48x32  seed 1  painter") and told.err == ""
    assert Path("photo.png").read_bytes() == before
    assert np.array_equal(pixels("photo-fill.png")[8:], pixels("photo.png")[8:])
    assert np.array_equal(pixels("photo-fill.png"), pixels("photo-fill-2.png"))
    assert run("fill", "photo.png", "a hat", "--region", "0,0,8,8", "-o", "./photo.png") == 2
    assert "the picture itself" in capsys.readouterr().err


def test_a_mask_is_saved_and_used_again(capsys: pytest.CaptureFixture[str]) -> None:
    fill = ("fill", "photo.png", "x", "--seed", "1", "-q")
    assert run(*fill, "--region", "10%,0,50%,50%", "--invert", "--save-mask", "mask.png") == 0
    assert run(*fill, "--mask", "mask.png") == 0
    assert np.array_equal(pixels("photo-fill.png"), pixels("photo-fill-2.png"))
    assert run(*fill, "--mask", "mask.png", "--region", "0,0,1,1") == 2
    assert "Where may the picture change?" in capsys.readouterr().err


def test_json_tells_what_changed(capsys: pytest.CaptureFixture[str]) -> None:
    edit = ("edit", "photo.png", "a hat", "--region", "0,0,8,8", "--json", "--format", "jpeg", "-n", "2", "--seed", "3")
    assert run(*edit) == 0
    told = json.loads(capsys.readouterr().out)
    assert [Path(image["path"]).name for image in told["images"]] == ["photo-edit.jpg", "photo-edit-2.jpg"]
    record = told["images"][1]["record"]
    assert (record["verb"], record["changed_outside_mask"], record["seed"]) == ("fill", 0, 4)
    assert [one["field"] for one in told["adjustments"]] == ["output_format"]


def test_a_chain_of_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fill", "photo.png", "a hat", "--region", "0,0,8,8", "--seed", "1", "-o", "one.jpg") == 0
    assert run("expand", "one.jpg", "a beach", "--right", "25%", "--seed", "2", "-o", "two.png") == 0
    assert run("vary", "two.png", "--subtle", "--seed", "3", "-o", "three.png") == 0
    capsys.readouterr()
    assert cli.run(["edits", "three.png"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [
        ["0", "original"],
        ["1", "fill"],
        ["2", "expand"],
        ["3", "vary"],
    ]
    assert "8x8 at 0,0" in lines[2] and "right 12" in lines[3] and lines[1].endswith("photo.png")
    assert cli.run(["edits", "three.png", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["steps"]) == 3
    assert run("undo", "three.png", "--steps", "1") == 0
    assert np.array_equal(pixels("three-undo.png"), pixels("two.png"))
    assert run("reproduce", "three.png") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "identical"
    Path("photo.png").rename("moved.png")
    assert run("reproduce", "three.png") == 2
    assert "--original" in capsys.readouterr().err
    assert run("reproduce", "three.png", "--original", "moved.png") == 0
    assert cli.run(["reproduce", "three.png", "--original", "moved.png"]) == 2, "a record chooses no model"


def test_reproduce_notices_a_changed_pixel(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fill", "photo.png", "a hat", "--region", "0,0,8,8", "--seed", "1", "-o", "one.png") == 0
    picture = open_picture("one.png")
    record = metadata.read(picture).record
    assert record is not None
    picture.putpixel((20, 20), (1, 2, 3))
    picture.save("one.png", **metadata.save_options(record, "png"))
    assert run("reproduce", "one.png") == 1
    assert "in 1 pixels" in capsys.readouterr().out


def test_upscale_and_restyle_and_blend(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["upscale", "photo.png", "4"]) == 0
    assert capsys.readouterr().out == "photo-upscale.png  192x128\n"
    assert run("restyle", "photo.png", "x", "--like", "photo-upscale.png") == 0
    assert run("blend", "photo.png", "photo-upscale.png", "--prompt", "x") == 0
    assert [open_picture(f"photo-{verb}.png").size for verb in ("restyle", "blend")] == [(48, 32)] * 2


def test_without_metadata_nothing_is_told_of_the_original() -> None:
    assert run("fill", "photo.png", "a hat", "--region", "0,0,8,8", "--no-metadata") == 0
    data = Path("photo-fill.png").read_bytes()
    assert b"photo" not in data and b"imagewright" not in data


def test_what_the_colours_mean_is_kept() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    picture = open_picture("photo.png")
    picture.save("wide.png", icc_profile=profile)
    for options in ((), ("--no-metadata",), ("--format", "jpeg"), ("--format", "webp")):
        assert run("fill", "wide.png", "x", "--region", "0,0,8,8", "--seed", "1", "-o", ".", *options) == 0
    found = [open_picture(path).info.get("icc_profile") for path in Path(".").glob("wide-fill*")]
    assert found == [profile] * 4
    picture.convert("L").save("grey.png", icc_profile=profile)
    assert run("fill", "grey.png", "x", "--region", "0,0,8,8") == 0
    assert "icc_profile" not in open_picture("grey-fill.png").info, "it was converted to RGB"


def test_the_record_of_a_later_edit_keeps_the_profile() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    open_picture("photo.png").save("wide.png", icc_profile=profile)
    assert run("fill", "wide.png", "x", "--region", "0,0,8,8", "--seed", "1", "-o", "one.jpg") == 0
    assert run("fill", "one.jpg", "y", "--region", "9,9,8,8", "--seed", "1", "-o", "two.png") == 0
    assert open_picture("two.png").info["icc_profile"] == profile
    assert np.array_equal(pixels("two.png")[20:], pixels("photo.png")[20:])


MISTAKES = {
    "no hole": ["fill", "photo.png", "x"],
    "no such picture": ["fill", "nothing.png", "x", "--region", "0,0,1,1"],
    "no picture": ["fill", "notes.txt", "x", "--region", "0,0,1,1"],
    "a truncated picture": ["fill", "half.png", "x", "--region", "0,0,1,1"],
    "a region outside": ["fill", "photo.png", "x", "--region", "100,100,5,5"],
    "an opaque mask": ["fill", "photo.png", "x", "--mask", "clear.png"],
    "a mask of another shape": ["fill", "photo.png", "x", "--mask", "wide.png"],
    "a long prompt": ["fill", "photo.png", "x" * 50_000, "--region", "0,0,1,1"],
    "not unicode": ["edit", "photo.png", "a \udcff fox", "--region", "0,0,1,1"],
    "two ways to expand": ["expand", "photo.png", "x", "--left", "5", "--pan", "left"],
    "too far": ["expand", "photo.png", "x", "--left", "99999"],
    "one picture to blend": ["blend", "photo.png"],
    "no style": ["restyle", "photo.png", "x"],
    "no such style": ["restyle", "photo.png", "x", "--style", "baroque"],
    "nothing to undo": ["undo", "photo.png"],
    "a strength too high": ["vary", "photo.png", "x", "--strength", "2"],
    "no such folder": ["vary", "photo.png", "x", "-o", "nowhere/a.png"],
}


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes_have_a_clear_answer_and_write_nothing(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("notes.txt").write_text("no picture")
    Path("half.png").write_bytes(Path("photo.png").read_bytes()[:900])
    Image.new("RGBA", (48, 32), "red").save("clear.png")
    Image.new("L", (48, 12), "white").save("wide.png")
    before = sorted(Path(".").iterdir())
    assert run(*MISTAKES[what]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: ") and "\nfix: " in told.err and told.out == ""
    assert "Unexpected" not in told.err and len(told.err) < 500
    assert sorted(Path(".").iterdir()) == before
