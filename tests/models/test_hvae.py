"""The hierarchical VAE: that it learns, follows words, and is the same picture wherever it is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from exported import Exported, arrays
from tests_support import DiscsSource
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from imagewright.data.batch import Batch
from imagewright.engines.runners import vae as runner
from imagewright.models.autoencoder import AutoencoderConfig, restoration
from imagewright.models.encoders import LatentsConfig, PixelsConfig
from imagewright.models.hvae import HierarchicalVAE, HVAEConfig
from imagewright.models.technique import Cond
from imagewright.models.text import TextConfig
from imagewright.models.vae import gaussian_kl, rate_distortion
from imagewright.source import Source
from imagewright.watch import Watch

TEXT = TextConfig(width=32, depth=1, heads=2)
COMMON: dict[str, Any] = {"cond": 32, "text": TEXT, "drop_text": 0.0, "drop_style": 0.0, "warmup": 10}
PIXELS = HVAEConfig(
    PixelsConfig(size=16), widths=(32, 32, 16), middles=(16, 16, 8), latents=(8, 4, 2), blocks=(1, 2, 1),
    readers=(), finishers=(), attending=1, scale=0.2, blind_every=0, **COMMON,
)  # fmt: skip
AUTOENCODER = AutoencoderConfig(size=16, widths=(16, 32), encoder_blocks=(1, 1), decoder_blocks=(1, 1), latent=8)
LATENTS = HVAEConfig(
    LatentsConfig(AUTOENCODER), widths=(32, 32, 16), middles=(16, 16, 16), latents=(8, 4, 0), blocks=(1, 1, 0),
    readers=(2, 2, 0), finishers=(0, 0, 1), scale=0.3, **COMMON,
)  # fmt: skip
CONFIGS = {"pixels": PIXELS, "latents": LATENTS}
ROWS = 6
WANTED = Cond(("a red disc", "a blue disc", "a green disc"), (1, 1, 1))


def fresh(config: HVAEConfig) -> HierarchicalVAE:
    """Untrained; on latents of an autoencoder that is it too, which tell pictures apart all the same."""
    torch.manual_seed(0)
    model = HierarchicalVAE(config)
    if model.encoder is not None:
        model.encoder.fit(model.encoder.autoencoder.encode(batch_of().pixels))
    return model


def drawn(model: HierarchicalVAE, cond: Cond, seeds: Sequence[int]) -> Tensor:
    """As `sample`, but in the space of the model."""
    words = model.condition(model.prompted(cond.prompts, cond.style))
    with torch.no_grad():
        return model.generate(torch.cat([model.code(seed) for seed in seeds]), *words)


def batch_of(step: int | None = None) -> Batch:
    found = DiscsSource(16).batch(0, 0, 0, ROWS, ROWS)
    return Batch(found.draws, found.pixels, text=found.text, style=found.style, captions=found.captions, step=step)


@pytest.fixture(scope="module", params=CONFIGS)
def trained(request: pytest.FixtureRequest) -> tuple[HierarchicalVAE, list[float]]:
    """Taught one batch of discs."""
    model, losses = fresh(CONFIGS[request.param]), []
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
    assert PIXELS.sides == (1, 4, 8) and LATENTS.sides == (1, 2, 4)
    assert fresh(PIXELS).levels == (8, 2 * 4 * 16, 2 * 64)
    assert fresh(LATENTS).levels == (8, 4 * 4), "the finest has none"
    with pytest.raises(ValueError, match="multiple of 4"):
        HierarchicalVAE(replace(PIXELS, encoder=PixelsConfig(size=18)))
    with pytest.raises(ValueError, match="blind_every"):
        replace(PIXELS, blind_every=1)


@pytest.mark.parametrize("space", CONFIGS)
def test_the_prior_starts_standard_normal_and_the_kl_near_nothing(space: str) -> None:
    model = fresh(CONFIGS[space])
    losses = model.loss(batch_of())
    assert losses["kl"] < 0.02
    each = [value for name, value in losses.items() if name.startswith("kl_")]
    assert len(each) == len(model.levels)
    torch.testing.assert_close(losses["kl"] * model.dimensions, sum(each))


def test_blind_rows_learn_without_their_pictures() -> None:
    model = fresh(LATENTS)
    batch = batch_of(step=20)
    x = model.encoded(batch.pixels)
    words = model.words(batch, drop=False)
    losses = model.loss(batch)
    blind = model.nll(model.generate(torch.zeros(ROWS, sum(model.levels)), *words.flat()), x)
    torch.testing.assert_close(losses["blind"], blind[::2].mean())
    kl = losses["kl"].clamp_min(2 * LATENTS.free_bits / model.dimensions)
    torch.testing.assert_close(losses["loss"], (blind[::2].mean() + losses["recon"] + kl) / 2, rtol=1e-3, atol=1e-3)
    outside = model.loss(batch_of())
    torch.testing.assert_close(outside["blind"], blind.mean())
    assert outside["loss"] < outside["recon"] + outside["kl"] + 0.1, "none is blind outside of a run"


def test_the_delta_form_of_the_kl_is_that_of_the_two_gaussians() -> None:
    mu, log_sigma, d_mu, d_log_sigma = torch.randn(4, 100, generator=torch.Generator().manual_seed(0)).double()
    sigma = log_sigma.exp()
    posterior = Normal(mu + sigma * d_mu, sigma * d_log_sigma.exp())
    torch.testing.assert_close(gaussian_kl(d_mu, d_log_sigma), kl_divergence(posterior, Normal(mu, sigma)))


@pytest.mark.parametrize("space", CONFIGS)
def test_held_out_rows_are_judged_without_gradients(space: str) -> None:
    model = fresh(CONFIGS[space]).eval()
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
    x, names = model.encoded(pixels), batch_of().captions
    with torch.no_grad():
        restored = (model.generate(code, *model.condition(words)) - x).abs().mean()
    assert restored < 0.9 * (drawn(model, Cond(names, [1] * ROWS), range(ROWS)) - x).abs().mean()


def test_the_code_of_a_seed_renders_what_it_samples(trained: tuple[HierarchicalVAE, list[float]]) -> None:
    model = trained[0]
    with torch.no_grad():
        words = model.prompted(["a red disc"], [1])
    sampled = model.sample(Cond(("a red disc",), (1,)), [7])
    torch.testing.assert_close(model.render(model.code(7), words), sampled, rtol=1e-4, atol=1e-4)


def test_words_choose_the_colour(trained: tuple[HierarchicalVAE, list[float]]) -> None:
    model, batch = trained[0], batch_of()
    if model.encoder is None:
        red, blue, _ = model.sample(WANTED, [0, 0, 0])
        assert (red[0] - red[2]).mean() > 0.05 > -0.05 > (blue[0] - blue[2]).mean()
        return
    x = model.encoded(batch.pixels)
    means = {name: x[[caption == name for caption in batch.captions]].mean(0) for name in set(batch.captions)}
    for name, found in zip(WANTED.prompts, drawn(model, WANTED, [0, 0, 0]), strict=True):
        distances = {other: (found - mean).abs().mean().item() for other, mean in means.items()}
        assert name not in means or min(distances, key=distances.__getitem__) == name, (name, distances)


def test_swapping_captions_swaps_pictures(trained: tuple[HierarchicalVAE, list[float]]) -> None:
    both = drawn(trained[0], Cond(WANTED.prompts[:2], (1, 1)), [3, 3])
    swapped = drawn(trained[0], Cond(WANTED.prompts[1::-1], (1, 1)), [3, 3])
    torch.testing.assert_close(swapped, both.flip(0), rtol=1e-4, atol=1e-4)
    assert (both[0] - both[1]).abs().mean() > 0.02


def test_guidance_of_one_is_none_and_more_moves_the_picture(trained: tuple[HierarchicalVAE, list[float]]) -> None:
    model = trained[0]
    plain = model.sample(WANTED, [0, 1, 2])
    torch.testing.assert_close(model.sample(WANTED, [0, 1, 2], guidance=1.0 + 1e-6), plain, rtol=1e-3, atol=1e-3)
    assert (model.sample(WANTED, [0, 1, 2], guidance=3.0) - plain).abs().mean() > 1e-3


def test_the_top_of_a_trace_is_the_picture(trained: tuple[HierarchicalVAE, list[float]]) -> None:
    shown: list[tuple[str, int, np.ndarray[Any, Any]]] = []
    watch = Watch(trace=lambda kind, index, array, facts: shown.append((kind, index, array)))
    picture = trained[0].sample(Cond(("a red disc",), (1,)), [0], watch=watch)
    assert [(kind, index) for kind, index, _ in shown] == [("level", i) for i in range(len(trained[0].levels))]
    np.testing.assert_allclose(shown[-1][2], picture[0].numpy(), atol=1e-6)
    assert np.abs(shown[0][2] - shown[-1][2]).mean() > 1e-3


def test_the_rate_is_the_kl_in_bits_a_pixel(trained: tuple[HierarchicalVAE, list[float]]) -> None:
    model, batch = trained[0], batch_of()
    with torch.no_grad():
        words = model.words(batch, drop=False)
    bits, psnr = rate_distortion(model, batch.pixels, words)
    with torch.no_grad():
        kl = model.loss(batch)["kl"].item()
    assert bits == pytest.approx(kl * model.dimensions / 16**2 / np.log(2), rel=0.15)
    assert model.encoder is not None or psnr > restoration(-torch.ones_like(batch.pixels), batch.pixels)["psnr"] + 1


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
    assert shown == list(range(len(model.levels)))


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


def test_the_exported_parts_find_the_same_code(
    trained: tuple[HierarchicalVAE, list[float]], exported: Exported
) -> None:
    model, pixels = trained[0], batch_of().pixels[:1]
    with torch.no_grad():
        words = model.prompted(["a red disc"], [1])
    found = runner.encode(exported, pixels.numpy(), arrays(words))
    np.testing.assert_allclose(found, model.invert(pixels, words).numpy(), atol=1e-3)


def test_on_latents_the_parts_of_the_encoder_are_its_own() -> None:
    graphs, parts = fresh(LATENTS).eval().graphs(), fresh(LATENTS).encoder
    assert set(graphs) == {"generator", "posterior", "encoder", "decoder"}
    assert parts is not None and graphs["decoder"].inputs == parts.graphs()["decoder"].inputs == ("x",)
    assert graphs["decoder"].precise and graphs["generator"].outputs == ("x",)
    assert set(fresh(PIXELS).eval().graphs()) == {"generator", "encoder"}


def test_cached_latents_give_the_loss_of_the_pixels() -> None:
    model, batch = fresh(LATENTS), batch_of(step=3)
    cached = replace(batch, latents=model.encoded(batch.pixels), pixels=None, draws=batch_of().draws)
    torch.testing.assert_close(model.loss(cached)["loss"], model.loss(batch_of(step=3))["loss"])
