"""The harness of benchmarks/ablations.py at toy size."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

from imagewright.models.autoencoder import Autoencoder
from imagewright.models.layers import rotary_table
from imagewright.training.presets import PRESETS

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "ablations.py"
TOY = {
    "batch": "8",
    "model.network.width": "32",
    "model.network.depth": "1",
    "model.network.heads": "1",
    "model.network.copies": "false",
    "model.edit_share": "0",
}
BUDGET = 24  # pictures


@pytest.fixture(scope="module")
def ablations() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ablations", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = sys.modules["ablations"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bench(ablations: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Sixteen discs and squares, and an untrained autoencoder of 32 pixels."""
    data = tmp_path_factory.mktemp("pictures")
    for i in range(16):
        picture = Image.new("RGBA", (32, 32))
        draw, colour = ImageDraw.Draw(picture), ("red", "green", "blue", "orange")[i // 4]
        (draw.ellipse, draw.rectangle)[i % 2]((2 + i // 4, 4, 20 + i // 4, 26), fill=colour)
        picture.save(data / f"{colour}_{('disc', 'square')[i % 2]}-{i:02d}.png")
    torch.manual_seed(0)
    autoencoder = Autoencoder(PRESETS["autoencoder"]["tiny"].model)
    latents = tmp_path_factory.mktemp("latents")
    return ablations.Bench(data, autoencoder, latents, drawings=4, probes=4, proxy=TOY)


def test_an_arm_that_ended_is_not_run_again(
    ablations: ModuleType, bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = [ablations.Arm("baseline"), ablations.Arm("predict flow", {"model.prediction": "flow"})]
    results = ablations.Results(tmp_path / "arms.jsonl", ["arm", "seed", "budget"])
    ablations.ablate(bench, results, arms[:1], [0], BUDGET)
    ablations.ablate(bench, results, arms, [0], BUDGET)
    assert [row["arm"] for row in results.rows] == ["baseline", "predict flow"]
    assert [row["pictures"] for row in results.rows] == [BUDGET, BUDGET]
    assert results.rows[0]["errors"] != results.rows[1]["errors"]

    def never(*_: Any) -> None:
        raise AssertionError("this arm has ended")

    monkeypatch.setattr(bench, "row", never)
    again = ablations.Results(tmp_path / "arms.jsonl", ["arm", "seed", "budget"])
    ablations.ablate(bench, again, arms, [0], BUDGET)
    printed = ablations.table(again.rows)
    assert "| baseline | 0 | 1.00 | 24 |" in printed and "| predict flow | 0 |" in printed
    with pytest.raises(AssertionError, match="has ended"):
        ablations.ablate(bench, again, arms, [1], BUDGET)


def test_an_arm_that_costs_more_gets_fewer_steps(
    ablations: ModuleType, bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "cost", lambda arm: 2.0 if arm.costs else 1.0)
    trained = {
        arm.name: bench.train(arm, 0, 64)[1]["pictures"]
        for arm in (
            ablations.Arm("same"),
            ablations.Arm("dear", costs=True),
            ablations.Arm("dear with half the rows", {"batch": "4"}, costs=True),
            ablations.Arm("grows", grows=True, costs=True),
        )
    }
    assert trained == {"same": 64, "dear": 32, "dear with half the rows": 16, "grows": 48}


def test_a_larger_network_is_found_to_cost_more(ablations: ModuleType, bench: Any) -> None:
    wide = {"model.network.width": "128", "model.network.depth": "4", "model.network.heads": "2"}
    assert bench.cost(ablations.Arm("wide", wide, costs=True)) > 1.2


def test_labels_alone_are_told_of_the_same_pictures(ablations: ModuleType, bench: Any) -> None:
    mix, label = (bench.learner(ablations.Arm("x", told=told), 0).source for told in ("mix", "label"))
    mixed, labelled = (source.batch(0, 3, 0, 8, 8) for source in (mix, label))
    assert torch.equal(mixed.latents, labelled.latents)
    assert set(labelled.captions) <= {record["text"] for record in bench.folder.records}
    assert torch.equal(mixed.draws.rand(), labelled.draws.rand())


@pytest.mark.parametrize("heard", ["all", "pooled", "tokens"])
def test_a_part_of_the_words_is_kept_from_the_network(ablations: ModuleType, bench: Any, heard: str) -> None:
    model = bench.model(ablations.Arm("x", heard=heard), 0)
    for words in (
        model.prompted(["red disc"], [0]),
        model.words(bench.learner(ablations.ARMS[0], 0).source.batch(0, 0, 0, 4, 4)),
    ):
        assert bool(words.mask.any()) == (heard != "pooled")
        assert bool(words.pooled.any()) == (heard != "tokens")


@torch.no_grad()
def test_a_model_cut_up_is_the_same_on_flat_patches_without_blocks(ablations: ModuleType, bench: Any) -> None:
    model = bench.model(ablations.Arm("x", {"model.network.depth": "0"}), 0)
    for parameter in (model.network.patch_out.weight, model.network.patch_out.bias, model.network.final.weight):
        parameter.normal_(std=0.1)
    finer = ablations.cut_up(model)
    assert finer.config.network.patch == 1
    flat = torch.randn(2, 8, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)  # (B, C, 8, 8)
    words = model.prompted(["red disc", "blue square"], [0, 0])
    condition = (torch.tensor([0.2, 0.8]), words, torch.zeros_like(flat), torch.zeros_like(flat[:, :1]))
    coarse, fine = model.denoised(flat, *condition), finer.denoised(flat, *condition)
    mean = torch.nn.functional.avg_pool2d(coarse, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(fine, mean, atol=1e-5, rtol=1e-4)


def test_half_steps_pass_through_the_old_positions(ablations: ModuleType) -> None:
    halves = [part.view(4, 4, -1)[::2, ::2].flatten(0, 1) for part in ablations.half_steps(4, 16)]
    for half, whole in zip(halves, rotary_table(2, 16), strict=True):
        torch.testing.assert_close(half, whole)


def test_the_rate_rises_stays_and_falls_to_nothing(ablations: ModuleType) -> None:
    rates = [ablations.lr_share(i / 100, 0.25) for i in range(101)]
    assert 0 < rates[0] < 0.5 and rates[-1] == 0
    assert rates[10:75] == [1.0] * 65
