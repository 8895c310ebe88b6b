"""The hierarchical VAE: that it learns, follows words, and is the same picture wherever it is drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from exported import Exported, arrays
from tests_support import DiscsSource
from torch.distributions import Normal, kl_divergence

from imagewright.data.batch import Batch
from imagewright.engines.runners import vae as runner
from imagewright.models.autoencoder import restoration
from imagewright.models.hvae import HierarchicalVAE, HVAEConfig
from imagewright.models.technique import Cond
from imagewright.models.text import TextConfig
from imagewright.models.vae import gaussian_kl, rate_distortion
from imagewright.source import Source
from imagewright.watch import Watch

SMALL = HVAEConfig(
    size=16, widths=(32, 32, 16), middles=(16, 16, 8), latents=(8, 4, 2), blocks=(1, 2, 1), encoder_blocks=(1, 1, 1),
    attending=1, cond=32, text=TextConfig(width=32, depth=1, heads=2), drop_text=0.0, drop_style=0.0, warmup=10,
)  # fmt: skip
ROWS = 6
WANTED = Cond(("a red disc", "a blue disc", "a green disc"), (1, 1, 1))


def fresh() -> HierarchicalVAE:
    torch.manual_seed(0)
    return HierarchicalVAE(SMALL)


def batch_of(step: int | None = None) -> Batch:
    found = DiscsSource(16).batch(0, 0, 0, ROWS, ROWS)
    return Batch(found.draws, found.pixels, text=found.text, style=found.style, captions=found.captions, step=step)


@pytest.fixture(scope="module")
def trained() -> tuple[HierarchicalVAE, list[float]]:
    """Taught one batch of discs."""
    model, losses = fresh(), []
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=8e-3)
    for step in range(100):
        loss = model.loss(batch_of(step))["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return model.eval(), losses


def test_it_learns_one_batch(trained: tuple[HierarchicalVAE, list[float]]) -> None:
    losses = trained[1]
    assert losses[-1] < losses[0] - 1.2, losses[::20]


def test_levels_say_how_many_numbers_a_code_has() -> None:
    assert SMALL.sides == (1, 4, 8)
    assert fresh().levels == (8, 2 * 4 * 16, 2 * 64)
    with pytest.raises(ValueError, match="multiple of 4"):
        HVAEConfig(size=18, widths=(8, 8, 8))


def test_the_prior_starts_standard_normal_and_the_kl_near_nothing() -> None:
    losses = fresh().loss(batch_of())
    assert losses["kl"] < 0.01
    torch.testing.assert_close(losses["kl"] * 4 * 16**2, losses["kl_1"] + losses["kl_4"] + losses["kl_8"])


def test_the_delta_form_of_the_kl_is_that_of_the_two_gaussians() -> None:
    mu, log_sigma, d_mu, d_log_sigma = torch.randn(4, 100, generator=torch.Generator().manual_seed(0)).double()
    sigma = log_sigma.exp()
    posterior = Normal(mu + sigma * d_mu, sigma * d_log_sigma.exp())
    torch.testing.assert_close(gaussian_kl(d_mu, d_log_sigma), kl_divergence(posterior, Normal(mu, sigma)))


def test_held_out_rows_are_judged_without_gradients() -> None:
    model = fresh().eval()
    with torch.no_grad():
        judged = model.loss(batch_of())
    torch.testing.assert_close(judged["loss"], model.loss(batch_of())["loss"])


def test_a_seed_is_one_picture_at_any_batch_size(trained: tuple[HierarchicalVAE, list[float]]) -> None:
    model = trained[0]
    together = model.sample(WANTED, [3, 4, 5])
    alone = model.sample(Cond(WANTED.prompts[1:2], (1,)), [4])
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)
    assert (together[0] - model.sample(Cond(WANTED.prompts[:1], (1,)), [9])[0]).abs().mean() > 1e-3


def test_an_inverted_picture_comes_back_better_than_a_sample(trained: tuple[HierarchicalVAE, list[float]]) -> None:
    model, pixels = trained[0], batch_of().pixels
    with torch.no_grad():
        words = model.words(batch_of(), drop=False)
    code = model.invert(pixels, words)
    assert code.shape == (ROWS, sum(model.levels))
    restored = restoration(model.render(code, words), pixels)["psnr"]
    drawn = torch.cat([model.render(model.code(seed), words[seed : seed + 1]) for seed in range(ROWS)])
    assert restored > restoration(drawn, pixels)["psnr"] + 1


def test_the_code_of_a_seed_renders_what_it_samples(trained: tuple[HierarchicalVAE, list[float]]) -> None:
    model = trained[0]
    with torch.no_grad():
        words = model.prompted(["a red disc"], [1])
    sampled = model.sample(Cond(("a red disc",), (1,)), [7])
    torch.testing.assert_close(model.render(model.code(7), words), sampled, rtol=1e-4, atol=1e-4)


def test_words_choose_the_colour(trained: tuple[HierarchicalVAE, list[float]]) -> None:
    red, blue, _ = trained[0].sample(WANTED, [0, 0, 0])
    assert (red[0] - red[2]).mean() > 0.05 > -0.05 > (blue[0] - blue[2]).mean()


def test_guidance_of_one_is_none_and_more_moves_the_picture(trained: tuple[HierarchicalVAE, list[float]]) -> None:
    model = trained[0]
    plain = model.sample(WANTED, [0, 1, 2])
    torch.testing.assert_close(model.sample(WANTED, [0, 1, 2], guidance=1.0 + 1e-6), plain, rtol=1e-3, atol=1e-3)
    assert (model.sample(WANTED, [0, 1, 2], guidance=3.0) - plain).abs().mean() > 1e-3


def test_the_top_of_a_trace_is_the_picture(trained: tuple[HierarchicalVAE, list[float]]) -> None:
    shown: list[tuple[str, int, np.ndarray[Any, Any]]] = []
    watch = Watch(trace=lambda kind, index, array, facts: shown.append((kind, index, array)))
    picture = trained[0].sample(Cond(("a red disc",), (1,)), [0], watch=watch)
    assert [(kind, index) for kind, index, _ in shown] == [("level", 0), ("level", 1), ("level", 2)]
    np.testing.assert_allclose(shown[-1][2], picture[0].numpy(), atol=1e-6)
    assert np.abs(shown[0][2] - shown[-1][2]).mean() > 1e-3


def test_the_rate_is_the_kl_in_bits_a_pixel(trained: tuple[HierarchicalVAE, list[float]]) -> None:
    model, batch = trained[0], batch_of()
    with torch.no_grad():
        words = model.words(batch, drop=False)
    bits, psnr = rate_distortion(model, batch.pixels, words)
    with torch.no_grad():
        kl = model.loss(batch)["kl"].item()
    assert bits == pytest.approx(kl * 4 / np.log(2), rel=0.1)
    assert psnr > restoration(torch.full_like(batch.pixels, -1.0), batch.pixels)["psnr"] + 1


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_the_exported_parts_draw_the_same(
    trained: tuple[HierarchicalVAE, list[float]], exported: Exported, guidance: float
) -> None:
    model = trained[0]
    cond = Cond(("a green disc",), (1,), ("a red disc",))
    with torch.no_grad():
        words = arrays(model.wanted_and_avoided(cond, 0))
    options = {"temperature": 0.8, "guidance": guidance}
    shown: list[int] = []
    watch = Watch(trace=lambda kind, index, array, facts: shown.append(index))
    drawn = runner.draw(exported, words, options, 11, watch)
    np.testing.assert_allclose(drawn.clip(-1, 1), model.sample(cond, [11], **options).numpy(), atol=1e-3)
    assert shown == [0, 1, 2]


PICTURES = batch_of().pixels[:2].numpy()


@pytest.mark.parametrize(
    "source", [Source(PICTURES[:1], strength=0.4), Source(PICTURES, strength=0.4)], ids=["image", "blend"]
)
def test_the_exported_parts_change_pictures_alike(
    trained: tuple[HierarchicalVAE, list[float]], exported: Exported, source: Source
) -> None:
    cond, options = Cond(("a green disc",), (1,), ("a red disc",)), {"temperature": 0.8, "guidance": 2.0}
    with torch.no_grad():
        words = arrays(trained[0].wanted_and_avoided(cond, 0))
    drawn = runner.draw(exported, words, options, 11, Watch(), source)
    np.testing.assert_allclose(drawn.clip(-1, 1), trained[0].sample(cond, [11], source=source, **options), atol=1e-3)


def test_strength_leads_from_a_picture_to_the_seed(trained: tuple[HierarchicalVAE, list[float]]) -> None:
    model, cond = trained[0], Cond(("a red disc",), (1,))
    words = model.prompted(["a red disc"], [1])
    same = model.sample(cond, [11], source=Source(PICTURES[:1], strength=0.0))
    torch.testing.assert_close(
        same, model.render(model.invert(torch.from_numpy(PICTURES[:1]), words), words), atol=1e-3, rtol=0
    )
    assert model.sample(cond, [11], source=Source(PICTURES[:1], strength=1.0)).equal(model.sample(cond, [11]))
    seeds = [model.sample(cond, [seed], source=Source(PICTURES[:1], strength=0.5)) for seed in (1, 2)]
    assert not seeds[0].equal(seeds[1]) and not seeds[0].equal(same)


@pytest.fixture(scope="module")
def exported(trained: tuple[HierarchicalVAE, list[float]], tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(trained[0], tmp_path_factory.mktemp("hvae"))


def test_the_exported_encoder_finds_the_same_code(
    trained: tuple[HierarchicalVAE, list[float]], exported: Exported
) -> None:
    model, pixels = trained[0], batch_of().pixels[:1]
    with torch.no_grad():
        words = model.prompted(["a red disc"], [1])
    found = exported.run("encoder", pixels=pixels.numpy(), **arrays(words))[0]
    np.testing.assert_allclose(found, model.invert(pixels, words).numpy(), atol=1e-3)
