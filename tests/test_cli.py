"""The command line, in this process and as one of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import imagewright
from imagewright import cli, cli_output
from imagewright.pictures import open_picture
from imagewright.provenance import identity

FOX = ("generate", "a red fox", "--model", "fake/blocks")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def files(folder: Path) -> list[str]:
    """Everything below `folder`, hidden files too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_picture_is_written_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*FOX, "--seed", "3"]) == 0
    told = capsys.readouterr()
    assert re.fullmatch(r"a-red-fox-3\.png  32x32  seed 3  blocks  \d+\.\d\d s\n", told.out)
    assert told.err == ""
    assert files(tmp_path) == ["a-red-fox-3.png"]
    assert open_picture(tmp_path / "a-red-fox-3.png").mode == "RGBA"


def test_unnamed_files_are_never_overwritten_and_named_ones_are(tmp_path: Path) -> None:
    for _ in range(3):
        assert cli.run([*FOX, "--seed", "3"]) == 0
        assert cli.run([*FOX, "-o", "fox.png"]) == 0
    assert files(tmp_path) == ["a-red-fox-3-2.png", "a-red-fox-3-3.png", "a-red-fox-3.png", "fox.png"]


def test_a_folder_gets_one_file_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    assert cli.run([*FOX, "-n", "3", "--seed", "8", "-o", "out", "--quiet", "--format", "jpg"]) == 0
    expected = [f"out/a-red-fox-{seed}.jpg" for seed in (8, 9, 10)]
    assert capsys.readouterr().out.split() == expected
    assert files(tmp_path) == sorted(expected)


@pytest.mark.parametrize(
    ("name", "stored"), [("a.png", "PNG"), ("a.jpg", "JPEG"), ("a.JPEG", "JPEG"), ("a.webp", "WEBP")]
)
def test_the_name_chooses_the_format(tmp_path: Path, name: str, stored: str) -> None:
    assert cli.run([*FOX, "-o", name]) == 0
    assert open_picture(tmp_path / name).format == stored


def test_json_holds_paths_records_and_adjustments(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*FOX, "--seed", "3", "--guidance", "4", "--json"]) == 0
    told = capsys.readouterr()
    answer = json.loads(told.out)
    assert answer["images"][0]["path"] == "a-red-fox-3.png"
    assert answer["images"][0]["record"]["seed"] == 3
    assert answer["adjustments"][0]["field"] == "guidance_scale"
    assert "note: guidance_scale" in told.err


def test_adjustments_are_said_even_when_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*FOX, "--guidance", "4", "--quiet"]) == 0
    assert "note: guidance_scale: 4.0 -> None" in capsys.readouterr().err


BAD: dict[str, list[str]] = {
    "empty prompt": ["generate", "", "--model", "fake/blocks"],
    "blank prompt": ["generate", " \n ", "--model", "fake/blocks"],
    "long prompt": ["generate", "x" * 50_000, "--model", "fake/blocks"],
    "not unicode": ["generate", "a \udcff fox", "--model", "fake/blocks"],
    "long negative": [*FOX, "--negative", "x" * 50_000],
    "no prompt": ["generate"],
    "two prompts": ["generate", "a", "b"],
    "zero side": [*FOX, "--size", "0x5"],
    "huge": [*FOX, "--size", "30000x30000"],
    "word size": [*FOX, "--size", "abc"],
    "three sides": [*FOX, "--size", "1x2x3"],
    "negative side": [*FOX, "--size=-5x5"],
    "word seed": [*FOX, "--seed", "abc"],
    "negative seed": [*FOX, "--seed", "-1"],
    "huge seed": [*FOX, "--seed", "4294967296"],
    "no pictures": [*FOX, "-n", "0"],
    "too many pictures": [*FOX, "-n", "65"],
    "zero steps": [*FOX, "--steps", "0"],
    "nan guidance": [*FOX, "--guidance", "nan"],
    "transparent jpeg": [*FOX, "--background", "transparent", "--format", "jpeg"],
    "transparent jpeg by name": [*FOX, "--background", "transparent", "-o", "a.jpg"],
    "unknown background": [*FOX, "--background", "mauve"],
    "unknown format": [*FOX, "--format", "gif"],
    "unknown suffix": [*FOX, "-o", "a.gif"],
    "formats disagree": [*FOX, "-o", "a.png", "--format", "webp"],
    "compression": [*FOX, "--compression", "101"],
    "unknown model": ["generate", "a", "--model", "nothing"],
    "unknown engine": ["generate", "a", "--model", "nothing/blocks"],
    "unknown model of an engine": ["generate", "a", "--model", "fake/nothing"],
    "unknown style": [*FOX, "--style", "oil"],
    "unknown sampler": [*FOX, "--sampler", "ddim"],
    "no such folder": [*FOX, "-o", "missing/fox.png"],
    "no such folder, slash": [*FOX, "-o", "missing/"],
    "many into one": [*FOX, "-n", "2", "-o", "a.png"],
    "unknown flag": [*FOX, "--nonsense"],
    "unknown command": ["paint"],
    "inspect nothing": ["inspect", "missing.png"],
    "reproduce nothing": ["reproduce", "missing.png"],
    "bad override": ["train", "vae", "--data", ".", "--set", "steps"],
}


@pytest.mark.parametrize("arguments", BAD.values(), ids=BAD.keys())
def test_bad_input_is_exit_code_2_without_a_trace(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(arguments) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err
    assert "Traceback" not in told.err
    assert re.match(r"error: .+\nfix: .+|Usage: ", told.err)
    assert files(tmp_path) == []


def test_an_unwritable_folder_is_said_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_output.os, "access", lambda *_: False)
    assert cli.run([*FOX]) == 2
    assert "cannot be written to" in capsys.readouterr().err
    assert files(tmp_path) == []


def test_a_full_disk_is_exit_code_1_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.run([*FOX, "-o", "a.png"]) == 0  # the identity exists now
    (tmp_path / "a.png").unlink()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert cli.run([*FOX]) == 1
    assert "No space left" in capsys.readouterr().err
    assert files(tmp_path) == []


def test_a_bug_is_one_line_too_unless_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(cli.Workshop, "make", broken)
    assert cli.run([*FOX]) == 1
    assert capsys.readouterr().err.startswith("error: Unexpected: ZeroDivisionError: a bug\nfix: ")
    monkeypatch.setenv("IMAGEWRIGHT_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        cli.run([*FOX])


def test_a_home_that_cannot_be_written_warns_or_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    (home / "blocked").write_text("a file, no folder")
    monkeypatch.setattr(identity, "folder", lambda: home / "blocked" / "identity")
    assert cli.run([*FOX, "-o", "a.png"]) == 0
    assert "note: The picture carries no credential" in capsys.readouterr().err
    assert cli.run([*FOX, "-o", "b.png", "--require-credential"]) == 1
    assert files(tmp_path) == ["a.png"]


def inspected(path: str, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, object]]:
    """What `inspect --json` says."""
    capsys.readouterr()
    assert cli.run(["inspect", path, "--json"]) == 0
    answer: dict[str, dict[str, object]] = json.loads(capsys.readouterr().out)
    return answer


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_every_file_is_signed_and_recorded(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*FOX, "-o", name, "--seed", "3"]) == 0
    found = inspected(name, capsys)
    assert found["credential"]["state"] == "trusted"
    record = found["metadata"]["record"]
    assert isinstance(record, dict) and record["prompt"] == "a red fox" and record["seed"] == 3
    assert cli.run(["inspect", name]) == 0
    told = capsys.readouterr().out
    assert "credential: trusted" in told and "prompt: a red fox" in told


def test_no_metadata_leaves_neither(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*FOX, "-o", "a.png", "--no-metadata"]) == 0
    found = inspected("a.png", capsys)
    assert found["credential"]["state"] == "none"
    assert found["metadata"] == {"record": None, "parameters": None, "digital_source_type": None}
    assert b"fox" not in (tmp_path / "a.png").read_bytes()
    assert cli.run(["inspect", "a.png"]) == 0
    assert "record: none" in capsys.readouterr().out


def test_hostile_text_cannot_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = PngInfo()
    info.add_itxt("imagewright", json.dumps({"version": 1, "prompt": "\x1b[2J\u202egnp.exe\x9b31m"}))
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", pnginfo=info)
    assert cli.run(["inspect", "a.png"]) == 0
    told = capsys.readouterr().out
    assert not re.search("[\x1b\x9b\u202e]", told) and "gnp.exe" in told


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_reproduce_says_identical(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    extra = ["--size", "50x40", "--compression", "70", "--style", "flat", "--steps", "2"]
    assert cli.run([*FOX, "-o", name, *extra]) == 0
    capsys.readouterr()
    assert cli.run(["reproduce", name, "--model", "fake/blocks"]) == 0
    assert capsys.readouterr().out.endswith("identical\n")


def changed(path: Path, **record: object) -> None:
    """Changes one pixel of a PNG by 9, and fields of its record."""
    image = open_picture(path)
    text = json.loads(image.info["imagewright"]) | record
    values = np.asarray(image).copy()
    values[5, 5, 0] ^= 9
    info = PngInfo()
    info.add_itxt("imagewright", json.dumps(text))
    Image.fromarray(values).save(path, pnginfo=info)


def test_reproduce_sees_one_changed_pixel_and_another_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*FOX, "-o", "a.png", "--seed", "1"]) == 0
    changed(tmp_path / "a.png", model_digest="cd" * 32)
    capsys.readouterr()
    assert cli.run(["reproduce", "a.png", "--model", "fake/blocks"]) == 1
    told = capsys.readouterr()
    assert re.search(r"differs by up to \d+ of 255 in 1 pixels", told.out)
    assert "recorded cdcdcdcdcdcd, present abababababab" in told.err
    assert cli.run(["reproduce", "a.png", "--model", "fake/blocks", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["pixels"] == 1


def test_a_file_never_chooses_an_engine_or_a_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*FOX, "-o", "a.png", "--seed", "1"]) == 0
    capsys.readouterr()
    assert cli.run(["reproduce", "a.png"]) == 2
    assert "--model fake/blocks" in capsys.readouterr().err
    (tmp_path / "evil").mkdir()
    for model in ("evil", "../evil", str(tmp_path / "evil")):
        changed(tmp_path / "a.png", engine="embedded", model=model)
        assert cli.run(["reproduce", "a.png"]) == 2
        assert "If you trust it" in capsys.readouterr().err


def test_pictures_without_a_record_cannot_be_made_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*FOX, "-o", "a.png", "--no-metadata"]) == 0
    assert cli.run(["reproduce", "a.png"]) == 2
    assert "no imagewright record" in capsys.readouterr().err


def test_models_lists_strangers_and_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["models"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"blocks +fake +noise +32x32 +CC0-1.0\n", told)
    assert cli.run(["models", "--json"]) == 0
    engines = json.loads(capsys.readouterr().out)["engines"]
    assert [engine["engine"] for engine in engines][:2] == ["embedded", "trained"]
    by_name = {engine["engine"]: engine for engine in engines}
    assert by_name["fake"]["models"][0]["capabilities"]["size"] == [32, 32]
    assert by_name["openai"]["locked"] and "OPENAI_API_KEY" in by_name["openai"]["fix"]


def test_missing_torch_names_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr("imagewright.cli_output.find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "imagewright.training.command", raising=False)
    monkeypatch.setitem(sys.modules, "imagewright.training", _WithoutTorch("imagewright.training"))
    assert cli.run(["train", "--technique", "diffusion", "--data", "."]) == 2
    assert "imagewright[train]" in capsys.readouterr().err


class _WithoutTorch(type(sys)):  # type: ignore[misc]
    """Stands for a package whose import needs torch."""

    @property
    def __path__(self) -> list[str]:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("A red fox!", "a-red-fox"),
        ("../../etc/passwd", "etc-passwd"),
        ("🦊", "picture"),
        ("красная лиса", "красная-лиса"),
        ("x" * 100, "x" * 40),
        ("-rf . \0", "rf"),
    ],
)
def test_slugs_are_safe_names(prompt: str, expected: str) -> None:
    assert cli_output.slug(prompt) == expected


def test_the_whole_process(tmp_path: Path) -> None:
    start = [sys.executable, "-c", "from imagewright.cli import main; main()", *FOX, "--seed", "3"]
    done = subprocess.run(start, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("a-red-fox-3.png  32x32  seed 3")
    assert files(tmp_path) == ["a-red-fox-3.png"]


def test_the_module_runs_and_terminals_without_unicode_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    start = [sys.executable, "-m", "imagewright", "generate", "лиса", "--model", "fake/blocks", "--seed", "3"]
    done = subprocess.run(start, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("????-3.png")
    assert files(tmp_path) == ["лиса-3.png"]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"imagewright {imagewright.__version__}\n"


def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    start = [sys.executable, "-c", "from imagewright.cli import main; main()", "generate", "--help"]
    process = subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout and process.stderr
    process.stdout.close()
    assert process.wait(60) == 1
    assert process.stderr.read() == b""
    process.stderr.close()


SLOW = """
import os, signal, sys
import imagewright_fake
def wait(*_):
    print("working", flush=True)
    signal.pause()
imagewright_fake.FakeEngine._generate = wait
from imagewright.cli import main
main()
"""


def test_ctrl_c_is_130_and_leaves_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *FOX],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stdout.readline() == "working\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert files(tmp_path) == []
