"""Diffusion from pictures: what stays and what changes, and that exported graphs do as torch does."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported import Exported, arrays
from test_diffusion import SMALL, lively

from imagewright.engines.runners import diffusion as runner
from imagewright.models.autoencoder import AutoencoderConfig
from imagewright.models.diffusion import EDITED, Diffusion
from imagewright.models.encoders import LatentsConfig
from imagewright.models.samplers import PROCESSES, noise_source
from imagewright.models.start import Start, anchored, begin, decoded_as_tile, diffused, middle, rolled, untouched
from imagewright.models.technique import Cond
from imagewright.source import Floats, Source
from imagewright.watch import Watch

LATENTS = replace(
    SMALL,
    encoder=LatentsConfig(AutoencoderConfig(size=32, widths=(16, 32), latent=4)),
    edit_share=0.5,
    guidance=3.0,
)
COND = Cond(["a red disc"], [1], ["a square"])
PICTURE = noise_source(1, (1, 4, 32, 32))().clip(-1, 1)
HOLE = np.zeros((1, 1, 32, 32), np.float32)
HOLE[:, :, 10:24, 8:22] = 1  # cuts through cells of 4 x 4
SOURCES = {
    "nothing": None,
    "image": Source(PICTURE, strength=0.5),
    "fill": Source(PICTURE, HOLE),
    "weak fill": Source(PICTURE, HOLE, strength=0.7),
    "instruction": Source(PICTURE, instruction=True),
    "instruction in a hole": Source(PICTURE, HOLE, instruction=True),
    "blend": Source(np.concatenate([PICTURE, PICTURE[:, :, ::-1]]), strength=0.8),
}


@cache
def model() -> Diffusion:
    return lively(Diffusion(LATENTS))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(model(), Path(tmp_path_factory.mktemp("graphs")))


def options(**others: Any) -> dict[str, Any]:
    return {name: getattr(LATENTS, name) for name in Diffusion.sampling} | others


@pytest.mark.parametrize("tile", [False, True])
@pytest.mark.parametrize("name", SOURCES)
def test_exported_graphs_draw_what_torch_draws(exported: Exported, name: str, tile: bool) -> None:
    expected = model().sample(COND, [3], source=SOURCES[name], tile=tile)
    words = arrays(model().wanted_and_avoided(COND, 0))
    made = runner.draw(exported, words, options(tile=tile), 3, Watch(), SOURCES[name])
    np.testing.assert_allclose(made.clip(-1, 1), expected.numpy(), atol=2e-3)


@pytest.mark.parametrize("name", SOURCES)
def test_a_seed_is_one_picture_at_any_batch_size(name: str) -> None:
    both = Cond(["a red disc", "a car"], [1, 2])
    together = model().sample(both, [5, 6], source=SOURCES[name])
    alone = model().sample(Cond(["a car"], [2]), [6], source=SOURCES[name])
    assert torch.equal(together[1:], alone)
    assert (together[0] - together[1]).abs().max() > 0.01


@pytest.mark.parametrize("process,prediction", [("flow", "x0"), ("cosine", "v"), ("edm", "edm")])
def test_strength_goes_from_the_picture_to_the_words_alone(process: str, prediction: str) -> None:
    model = lively(Diffusion(replace(SMALL, process=process, prediction=prediction)))
    picture = PICTURE[:, :, :8, :8]
    distances = []
    for strength in (0.0, 0.3, 0.8, 1.0):
        made = model.sample(COND, [3], source=Source(picture, strength=strength))
        distances.append(float((made - torch.from_numpy(picture)).abs().mean()))
    assert distances[0] < 1e-6 < distances[1]
    assert distances[1] < distances[2]
    torch.testing.assert_close(made, model.sample(COND, [3]))


def test_a_weaker_change_takes_fewer_steps() -> None:
    seen: list[int] = []
    model().sample(COND, [3], source=SOURCES["image"], watch=Watch(trace=lambda kind, i, *_: seen.append(i)))
    process, noise, start = PROCESSES["flow"](), np.ones((1, 1)), Start(np.zeros(1), np.zeros(1), np.zeros((1, 1)), 0.5)
    x, times = begin(start, noise, process, 16)
    assert x == 0.5 and len(times) == 9 and times[0] == 0.5 and times[-1] == 0
    assert max(seen) == 2  # two steps of four, then the attention


@pytest.mark.parametrize("name", ["fill", "instruction in a hole"])
def test_what_is_not_in_the_hole_is_known_to_every_estimate(name: str) -> None:
    """On pixels, where encoding loses nothing, it comes back as it was."""
    model = lively(Diffusion(replace(SMALL, edit_share=0.5)))
    hole = HOLE[:, :, 8:16, 6:14]
    picture = PICTURE[:, :, :8, :8]
    made = model.sample(COND, [3], source=replace(SOURCES[name], pixels=picture, hole=hole)).numpy()
    np.testing.assert_allclose(np.where(hole > 0, 0, made), np.where(hole > 0, 0, picture), atol=1e-6)
    assert np.abs(made - picture)[:, :, hole[0, 0] > 0].mean() > 0.05


def test_a_fill_does_not_know_what_was_in_the_hole() -> None:
    other = np.where(HOLE > 0, -PICTURE, PICTURE)
    made = model().sample(COND, [3], source=Source(PICTURE, HOLE))
    torch.testing.assert_close(made, model().sample(COND, [3], source=Source(other, HOLE)))
    weak = [model().sample(COND, [3], source=Source(pixels, HOLE, strength=0.5)) for pixels in (PICTURE, other)]
    assert (weak[0] - weak[1]).abs().max() > 0.01


def test_the_network_sees_what_it_was_trained_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fill: cells that stay, mask 1. An instruction: the picture, mask -1, beside the words and without them."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    estimate = Diffusion._estimate

    def watched(self: Diffusion, x: torch.Tensor, t: torch.Tensor, *condition: torch.Tensor, maps: Any = None) -> Any:
        seen.append(condition[-2:])
        return estimate(self, x, t, *condition, maps=maps)

    monkeypatch.setattr(Diffusion, "_estimate", watched)
    latents = model().encoder.encode(torch.from_numpy(PICTURE))
    model().sample(COND, [3], source=SOURCES["instruction"])
    for known, mask in seen:
        assert len(known) == 2 and (mask == EDITED).all()
        torch.testing.assert_close(known, latents.expand(2, -1, -1, -1))
    seen.clear()
    model().sample(COND, [3], source=SOURCES["fill"])
    for _, mask in seen:
        cells = mask[0, 0]
        assert set(cells.unique().tolist()) == {0.0, 1.0}
        assert (cells == 0).nonzero().min(0).values.tolist() == [2, 2] and (cells == 0).sum() == 16


def test_only_a_model_that_was_taught_follows_instructions() -> None:
    assert "instruction" in model().edits and "instruction" in model().runtime()["edits"]
    assert "instruction" not in Diffusion(SMALL).edits


def test_cells_touched_by_the_hole_are_not_known() -> None:
    cells = untouched(HOLE, 8)[0, 0]
    assert (cells[2:6, 2:6] == 0).all() and cells.sum() == 64 - 16
    assert untouched(np.zeros_like(HOLE), 8).all() and not untouched(np.ones_like(HOLE), 8).any()


def test_a_hole_is_filled_from_around_it() -> None:
    picture = np.full((1, 4, 32, 32), 0.5, np.float32)
    picture[:, 0, :, 16:] = -0.5
    spoilt = np.where(HOLE > 0, 99, picture).astype(np.float32)
    found = diffused(spoilt, HOLE)
    np.testing.assert_array_equal(found[:, :, HOLE[0, 0] == 0], picture[:, :, HOLE[0, 0] == 0])
    np.testing.assert_allclose(found[:, 1], 0.5, atol=1e-6)
    assert found[0, 0, 16, 8] > 0.3 and found[0, 0, 16, 21] < -0.3  # as the nearer side is
    assert (diffused(picture, np.ones_like(HOLE)) == -1).all()  # nothing around: transparent


def test_anchoring_needs_no_decoder_where_cells_are_whole() -> None:
    def never(x: Floats) -> Floats:
        raise AssertionError("decoded")

    stays = np.zeros((1, 1, 2, 2), np.float32)
    stays[..., 0] = 1
    known = np.full((1, 1, 2, 2), 5.0, np.float32)
    start = Start(known, stays, known, 1.0, None, known, 1 - stays, stays, 0 * stays)
    found = anchored(lambda x, t: np.zeros_like(x), start, never, never)(known, 0.5)
    np.testing.assert_array_equal(found[0, 0], [[5, 0], [5, 0]])


def test_between_noises_there_is_as_much_noise() -> None:
    noises = [noise_source(seed, (1, 4, 8, 8))() for seed in range(4)]
    found = middle(noises)
    assert abs(found.std() - 1) < 0.1 and np.mean(noises, axis=0).std() < 0.6
    assert all((found * noise).sum() > 0 for noise in noises)


def test_a_tile_goes_on_at_the_opposite_edge() -> None:
    """Rolling the latents rolls the picture: nothing tells where its border is. A plain decoder does tell."""
    latents = noise_source(0, (1, 4, 8, 8))()

    def decode(x: Floats) -> Floats:
        return model().encoder.decode(torch.from_numpy(x)).detach().numpy()

    for rows, columns in ((4, 0), (4, 4), (0, 4)):
        moved = rolled(decoded_as_tile(decode, latents, np.asarray), 4 * rows, 4 * columns)
        np.testing.assert_allclose(
            decoded_as_tile(decode, rolled(latents, rows, columns), np.asarray), moved, atol=1e-4
        )
        assert (
            np.abs(decode(rolled(latents, rows, columns)) - rolled(decode(latents), 4 * rows, 4 * columns)).max() > 0.05
        )


def test_rolling_is_the_same_in_numpy_and_torch() -> None:
    x = noise_source(0, (2, 3, 4, 4))()
    np.testing.assert_array_equal(rolled(x, 1, -2), np.roll(x, (1, -2), (2, 3)))
    np.testing.assert_array_equal(rolled(torch.from_numpy(x), 1, -2).numpy(), np.roll(x, (1, -2), (2, 3)))
