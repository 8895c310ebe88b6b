"""The commands that look inside runs and compare models, as they are typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from imagewright import cli, cli_compare
from imagewright.evaluation import compare
from imagewright.evaluation.measure import Cost
from imagewright.models import registry
from imagewright.models.diffusion import DiffusionConfig
from imagewright.models.dit import DiTConfig
from imagewright.models.encoders import PixelsConfig
from imagewright.models.text import TextConfig
from imagewright.pictures import open_picture
from imagewright.training.checkpoint import CheckpointStore, Snapshot


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a random diffusion model on 8x8 pixels."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    torch.manual_seed(0)
    network = DiTConfig(width=32, depth=1, heads=2, patch=4)
    text = TextConfig(width=32, depth=1, heads=2)
    technique = registry.build(DiffusionConfig(PixelsConfig(8), network, text, steps=2))
    for parameter in technique.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # untouched, it would draw the same picture from everything
    config = {"model": registry.to_dict(technique.config), "train": {}}
    CheckpointStore(folder).save(Snapshot(1, config, technique, {}, {}, {}))
    return folder


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_film_between_a_prompt_and_a_picture(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (20, 20), "red").save("red.png")
    command = ["interpolate", str(run), "a red fox", "red.png", "--frames", "3", "--there-and-back", "--size", "32"]
    assert cli.run([*command, "--out", "fox.gif", "--fps", "10"]) == 0
    assert capsys.readouterr().out == "fox.gif: 4 pictures, 0.4 s\n"
    with Image.open("fox.gif") as film:
        assert film.size == (32, 32) and film.n_frames == 4


def test_projection_tells_how_near_each_picture_comes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, colour in (("red.png", "red"), ("blue.png", "blue")):
        Image.new("RGB", (8, 8), colour).save(name)
    assert cli.run(["project", str(run), "red.png", "blue.png"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("red.png: ") and told[1].startswith("blue.png: ") and told[0].endswith(" dB")
    assert told[2] == "project.png" and open_picture(Path("project.png")).height > 2 * 128


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["interpolate", "RUN", "a", "b", "--out", "a.avi"], "A film cannot end in '.avi'"),
        (["interpolate", "missing", "a", "b"], "no model in missing"),
        (["mix", "RUN"], "no style a layer"),
        (["layers", "RUN"], "no style a layer"),
        (["project", "RUN", "missing.png"], "missing.png"),
        (["project", "RUN", "bad.png"], "bad.png"),
        (["interpolate", "RUN", "a", "b", "--style", "oil"], "no style 'oil'"),
        (["compare"], "Give a prompt, or --report"),
        (["compare", "fox", "--report", "out"], "Give a prompt, or --report"),
        (["compare", "fox", "--run", "RUN"], "go into a report"),
        (["compare", "fox", "--sweep", "1,x"], "Cannot read --sweep"),
        (["compare", "fox", "--technique", "odd"], "No odd model is here"),
        (["compare", "--report", "out", "--run", "missing"], "no log of a run"),
    ],
)
def test_wrong_input_is_said_with_a_fix_and_nothing_is_written(
    run: Path, command: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    assert cli.run([str(run) if word == "RUN" else word for word in command]) == 2
    told = capsys.readouterr().err
    assert said in told and "fix:" in told and "Unexpected" not in told
    assert [path.name for path in tmp_path.iterdir()] == ["bad.png"]


class Judge:
    """Everything fits by half."""

    labels = {"styles": ["flat"]}  # noqa: RUF012

    def match(self, pictures: list[Image.Image], prompts: list[str]) -> list[float]:
        return [0.5] * len(pictures)

    def identify(self, pictures: list[Image.Image]) -> dict[str, list[list[float]]]:
        return {"style": [[1.0]] * len(pictures)}


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagewright.refine.judge.Judges", Judge)


@pytest.mark.usefixtures("judge")
def test_models_are_compared_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", "a red fox", "--models", "fake/blocks,fake/opaque", "--seed", "3", "--style", "flat"]
    assert cli.run(command) == 0
    told = capsys.readouterr()
    head, blocks, opaque, *_ = told.out.splitlines()
    assert head.split() == ["MODEL", "TECHNIQUE", "PARAMETERS", "FILES", "COLD", "WARM", "MEMORY", "MATCH", "STYLE"]
    assert blocks.split()[0] == "blocks" and blocks.split()[-2:] == ["0.50", "1.00"]
    assert opaque.split()[0] == "opaque" and opaque.split()[-1] == "-"
    assert "opaque: style: flat -> none (this model has no such style)" in told.err
    written = json.loads(Path("compare.json").read_text("utf-8"))
    assert [model["model"] for model in written["models"]] == ["blocks", "opaque"]
    assert written["models"][0]["seed"] == 3
    assert open_picture(Path("compare.png")).width > 256


@pytest.mark.usefixtures("judge")
def test_a_report_holds_the_sweep_of_steps(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[int | None] = []

    def measured(requests: list[dict[str, object]]) -> tuple[list[Image.Image], list[dict[str, list[object]]], Cost]:
        asked.append(requests[0]["num_inference_steps"])  # type: ignore[arg-type]
        return [Image.new("RGBA", (8, 8))] * len(requests), [{"adjustments": []}] * len(requests), Cost(2.0, 1.0, None)

    monkeypatch.setitem(compare.entries.__kwdefaults__, "measured", measured)
    command = ["compare", "--report", "out", "--models", "fake/blocks,fake/opaque", "--sweep", "1,4", "--json"]
    assert cli.run(command) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["written"] == "out/index.html" and len(told["models"]) == 2
    assert asked == [None, None, 1, 4]  # opaque has no steps
    report = json.loads(Path("out/report.json").read_text("utf-8"))
    assert [sweep["steps"] for sweep in report["sweeps"]] == [1, 4] and len(report["prompts"]) == 24
    assert "by steps" in Path("out/index.html").read_text("utf-8")


def test_without_judges_the_comparison_goes_on_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from imagewright.refine import judge as judges

    monkeypatch.setattr(judges, "files", lambda package: tmp_path)
    assert cli_compare._scorer() is None
    assert "note: not scored: There are no judges" in capsys.readouterr().err


def test_a_trace_is_a_folder_of_its_own(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    fox = ["generate", "a red fox", "--model", "fake/blocks", "-o", "fox.png", "--trace", "trace"]
    assert cli.run(fox) == 0
    assert sorted(path.name for path in Path("trace").iterdir()) == ["overview.png", "trace.json"]
    assert cli.run(fox) == 1
    assert "holds something already" in capsys.readouterr().err
