"""The autoencoder and the plain VAEs: shapes, bounds, formulas, and that they learn to restore pictures."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from exported import Exported, arrays
from tests_support import DiscsSource
from torch import Tensor
from torch.distributions import Laplace, MultivariateNormal, Normal, kl_divergence

from imagewright.data.batch import Batch, Draws
from imagewright.engines.runners import vae as runner
from imagewright.errors import CheckpointError
from imagewright.models import registry
from imagewright.models.autoencoder import Autoencoder, AutoencoderConfig, restoration
from imagewright.models.technique import Cond, Words
from imagewright.models.text import TextConfig
from imagewright.models.vae import VAE, GaussianVAE, VAEConfig, gaussian_kl, grey, laplace_nll, rate_distortion, slerp
from imagewright.training.config import TrainConfig
from imagewright.training.state import TrainState, check_same, describe
from imagewright.watch import Watch

SMALL = AutoencoderConfig(size=16, widths=(16, 32), encoder_blocks=(1, 1), decoder_blocks=(1, 1), latent=8)
TEXT = TextConfig(width=32, depth=1, heads=2)
CONV = VAEConfig(size=16, widths=(16, 32), latent=16, cond=16, text=TEXT, drop_text=0, drop_style=0, warmup=10)
ARTICLE = replace(CONV, widths=(), hidden=64)
ROWS = 8


def pictures(rows: int) -> Tensor:
    """Premultiplied discs of different colours and places, (rows, 4, 16, 16) in [-1, 1]."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    centre = 4 + 8 * torch.rand(rows, 2, 1, 1, generator=generator)
    alpha = ((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2 < 16).float()[:, None]
    return torch.cat([alpha * torch.rand(rows, 3, 1, 1, generator=generator), alpha], dim=1) * 2 - 1


def discs(step: int | None = None) -> Batch:
    found = DiscsSource(16).batch(0, 0, 0, ROWS, ROWS)
    return Batch(found.draws, found.pixels, text=found.text, style=found.style, captions=found.captions, step=step)


def taught(config: VAEConfig, steps: int = 120) -> tuple[VAE, list[float]]:
    torch.manual_seed(0)
    model, losses = VAE(config), []
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=4e-3)
    for step in range(steps):
        loss = model.loss(discs(step))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model.eval(), losses


@pytest.fixture(scope="module")
def conv() -> tuple[VAE, list[float]]:
    return taught(CONV)


@pytest.fixture(scope="module")
def article() -> tuple[VAE, list[float]]:
    return taught(ARTICLE)


# the autoencoder


def test_latents_have_the_stated_shape_and_bounds() -> None:
    model = Autoencoder(SMALL)
    latents = model.encode(pictures(2))
    assert latents.shape == (2, *SMALL.latent_shape) == (2, 8, 4, 4)
    assert latents.abs().max() < 1
    assert model.decode(latents).shape == (2, 4, 16, 16)


def test_it_learns_one_batch() -> None:
    torch.manual_seed(0)
    model, pixels = Autoencoder(SMALL), pictures(16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    values = []
    for step in range(200):
        losses = model.loss(Batch(Draws(0, step, 0, 16, 16), pixels=pixels))
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        values.append(losses["psnr"].item())
    assert values[-1] > values[0] + 7, values[::40]


def test_a_picture_is_restored_alike_in_any_company() -> None:
    model, pixels = Autoencoder(SMALL).eval(), pictures(4)
    torch.testing.assert_close(model.reconstruct(pixels)[:1], model.reconstruct(pixels[:1]), rtol=1e-4, atol=1e-5)


def test_a_discriminator_trains_in_a_phase_of_its_own() -> None:
    torch.manual_seed(0)
    model, pixels = Autoencoder(replace(SMALL, adversarial=0.1)), pictures(8)
    state = TrainState(model, TrainConfig(lr=1e-2))
    assert [phase.name for phase in model.phases] == ["discriminator", "main"]
    gaps = []
    for step in range(20):
        for phase in model.phases:
            optimizers = state.optimizers[phase.name]
            with state.only(optimizers.parameters):
                losses = model.loss(Batch(Draws(0, step, 0, 8, 8), pixels=pixels), phase.name)
                losses["loss"].backward()
            assert all(p.grad is not None for p in optimizers.parameters)
            if phase.name == "discriminator":
                gaps.append((losses["real"] - losses["made"]).item())
                optimizers.step(1.0)
            else:
                assert all(p.grad is None for p in model.discriminator.parameters())
                for p in optimizers.parameters:
                    p.grad = None
    assert gaps[-1] > gaps[0] + 0.5, gaps


def test_without_a_discriminator_nothing_changes() -> None:
    model = Autoencoder(SMALL)
    assert [phase.name for phase in model.phases] == ["main"]
    assert {name.partition(".")[0] for name in model.state_dict()} == {"encoder", "decoder"}


def test_detail_begins_as_the_picture_enlarged_and_learns_more() -> None:
    torch.manual_seed(0)
    config = replace(SMALL, detail=8, frozen=True)
    model = Autoencoder(config)
    assert model.pixels == 32, "it learns from the larger pictures"
    large = F.interpolate(pictures(ROWS), scale_factor=2, mode="nearest").flip(2)
    latents = model.encode(F.avg_pool2d(large, 2))
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    with torch.no_grad():
        small, twice = model.decode_both(latents)
        assert torch.equal(small, model.decode(latents))
        assert torch.allclose(twice, F.interpolate(small, scale_factor=2, mode="bilinear"))
    groups = model.param_groups()
    optimizer = torch.optim.Adam([p for group in groups.values() for p in group], 1e-2)
    for _ in range(120):
        optimizer.zero_grad()
        losses = model.loss(Batch(Draws(0, 0, 0, ROWS, ROWS), large))
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        small, twice = model.decode_both(model.encode(F.avg_pool2d(large, 2)))
        enlarged = F.interpolate(small, scale_factor=2, mode="bilinear")
        assert (twice - large).abs().mean() < 0.9 * (enlarged - large).abs().mean()
        assert torch.equal(model.reconstruct(large), twice.clamp(-1, 1))
    for name, value in model.encoder.state_dict().items():
        assert torch.equal(value, before[name]), "the encoder is frozen"
    with pytest.raises(ValueError, match="do not go together"):
        Autoencoder(replace(config, adversarial=0.1))


def test_a_run_from_before_a_field_was_added_goes_on(tmp_path: Path) -> None:
    now = describe(Autoencoder(SMALL), TrainConfig(), {})
    saved = json.loads(json.dumps(now))
    del saved["model"]["adversarial"]
    assert check_same(saved, now, tmp_path) == []
    other = describe(Autoencoder(replace(SMALL, adversarial=0.1)), TrainConfig(), {})
    with pytest.raises(CheckpointError, match=r"adversarial: 0\.0 -> 0\.1"):
        check_same(saved, other, tmp_path)


# the plain VAEs


@pytest.mark.parametrize("kind", ["conv", "article"])
def test_a_vae_learns_one_batch(kind: str, request: pytest.FixtureRequest) -> None:
    losses = request.getfixturevalue(kind)[1]
    assert losses[-1] < 0.5 * losses[0], losses[::20]


def test_the_article_s_network_has_its_sizes() -> None:
    model = registry.build(replace(ARTICLE, size=28, hidden=400, latent=20, conditional=False))
    shapes = [tuple(p.shape) for name, p in model.named_parameters() if p.ndim == 2 and not name.startswith("text.")]
    assert shapes == [(400, 784), (784, 400), (40, 400), (400, 20)]
    assert model.sample(Cond(("",), (0,)), [0]).shape == (1, 4, 28, 28)


def test_the_kl_is_that_of_the_distributions() -> None:
    mu, log_sigma = torch.randn(2, 100, generator=torch.Generator().manual_seed(0)).double()
    expected = kl_divergence(Normal(mu, log_sigma.exp()), Normal(torch.zeros(100).double(), 1.0))
    torch.testing.assert_close(gaussian_kl(mu, log_sigma), expected)


def test_the_likelihood_is_laplace_s() -> None:
    mean, pixels = pictures(4).roll(1, 0), pictures(4)
    expected = -Laplace(mean, 0.2).log_prob(pixels).flatten(1).mean(1)
    torch.testing.assert_close(laplace_nll(mean, pixels, 0.2), expected)


def test_grey_is_the_mean_of_the_colours_over_white() -> None:
    red_opaque, clear = torch.tensor([1.0, -1, -1, 1]), -torch.ones(4)
    found = grey(torch.stack([red_opaque, clear]).view(2, 4, 1, 1))
    torch.testing.assert_close(found.flatten(), torch.tensor([1 / 3, 1.0]))


@dataclass(frozen=True)
class LinearConfig:
    """p(x | z) = N(W z, noise^2) with orthogonal columns of W, whose posterior has independent numbers."""

    size: int = 2
    noise: float = 0.5
    beta: float = 1.0
    free_bits: float = 0.0
    warmup: int = 0
    temperature: float = 1.0
    text: TextConfig = field(default_factory=lambda: TEXT)
    train_text: bool = False


class LinearVAE(GaussianVAE):
    """A VAE whose likelihood is known; its posterior is the true one, but for `off`."""

    inputs = ()
    levels = (3,)

    def __init__(self, config: LinearConfig, off: float = 0.0) -> None:
        super().__init__(config)
        self.W = torch.linalg.qr(torch.randn(16, 3, generator=torch.Generator().manual_seed(1)))[0] * 2.0
        self.off = off

    def infer(self, pixels: Tensor, noise: Tensor, *condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        variance = 1 / (1 + 4.0 / self.config.noise**2)
        mu = pixels.flatten(1) @ self.W * variance / self.config.noise**2 + self.off
        log_sigma = torch.full_like(mu, 0.5 * math.log(variance) - self.off)
        code = mu + log_sigma.exp() * noise
        return self.generate(code), gaussian_kl(mu, log_sigma), code

    def generate(self, code: Tensor, *condition: Tensor) -> Tensor:
        return (code @ self.W.T).view(-1, 4, 2, 2)

    def nll(self, made: Tensor, pixels: Tensor) -> Tensor:
        return -Normal(made, self.config.noise).log_prob(pixels).flatten(1).mean(1)


@pytest.mark.parametrize("off", [0.0, 0.2, -0.3])
def test_the_bound_lies_below_the_exact_likelihood(off: float) -> None:
    model, rows = LinearVAE(LinearConfig(), off), 50_000
    x = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(2))
    bound = -model.loss(Batch(Draws(0, 0, 0, rows, rows), pixels=x.expand(rows, -1, -1, -1)))["loss"] * 16
    exact = MultivariateNormal(torch.zeros(16), model.W @ model.W.T + 0.25 * torch.eye(16)).log_prob(x.flatten())
    if off == 0:
        assert bound.item() == pytest.approx(exact.item(), abs=0.02)
    else:
        assert bound < exact - 0.1


def test_beta_warm_up_and_free_bits_weigh_the_kl() -> None:
    x = torch.randn(4, 4, 2, 2, generator=torch.Generator().manual_seed(2))

    def loss(step: int | None, **changes: float) -> dict[str, Tensor]:
        model = LinearVAE(replace(LinearConfig(), **changes))
        return model.loss(Batch(Draws(0, 0, 0, 4, 4), pixels=x, step=step))

    plain = loss(None)
    recon, kl = plain["recon"], plain["kl"]
    torch.testing.assert_close(plain["loss"], recon + kl)
    torch.testing.assert_close(loss(None, beta=4.0)["loss"], recon + 4 * kl)
    torch.testing.assert_close(loss(0, warmup=10)["loss"], recon)
    torch.testing.assert_close(loss(5, warmup=10, beta=2.0)["loss"], recon + kl)
    torch.testing.assert_close(loss(50, warmup=10)["loss"], recon + kl)
    torch.testing.assert_close(loss(None, warmup=10)["loss"], recon + kl)
    generous = loss(None, free_bits=100.0)
    torch.testing.assert_close(generous["loss"], recon + 3 * 100.0 / 16)
    torch.testing.assert_close(generous["kl"], kl)


def test_free_bits_take_the_pressure_off_what_is_below_them() -> None:
    torch.manual_seed(0)
    model = VAE(replace(CONV, free_bits=1e6))
    _, kl, _ = model.infer(discs().pixels, torch.zeros(ROWS, 16), *model.condition(model.words(discs())))
    kl.clamp_min(model.config.free_bits).sum().backward()
    assert model.posterior.weight.grad.abs().max() == 0


def test_held_out_rows_are_judged_without_gradients(conv: tuple[VAE, list[float]]) -> None:
    with torch.no_grad():
        judged = conv[0].loss(discs())["loss"]
    torch.testing.assert_close(judged, conv[0].loss(discs())["loss"].detach())


@pytest.mark.parametrize("kind", ["conv", "article"])
def test_a_seed_is_one_picture_at_any_batch_size(kind: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)[0]
    together = model.sample(Cond(("a red disc", "a blue disc"), (1, 1)), [3, 4])
    alone = model.sample(Cond(("a blue disc",), (1,)), [4])
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-5)
    assert (together[1] - model.sample(Cond(("a blue disc",), (1,)), [5])[0]).abs().mean() > 1e-3


@pytest.mark.parametrize("kind", ["conv", "article"])
def test_an_inverted_picture_comes_back_better_than_a_sample(kind: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)[0]
    words, pixels = _words(model), discs().pixels
    if kind == "article":
        shade = 2 * grey(pixels) - 1
        pixels = torch.cat([shade, shade, shade, torch.ones_like(shade)], dim=1)
    restored = restoration(model.render(model.invert(pixels, words), words), pixels)["psnr"]
    codes = torch.cat([model.code(seed) for seed in range(ROWS)])
    assert restored > restoration(model.render(codes, words), pixels)["psnr"] + 0.3


def test_words_choose_the_colour(conv: tuple[VAE, list[float]]) -> None:
    cond = Cond(("a red disc", "a blue disc"), (1, 1))
    red, blue = ((x[0] - x[2]).mean() for x in conv[0].sample(cond, [0, 0], temperature=0.0))
    assert red > blue + 0.02


def test_a_mixed_code_lies_on_the_arc() -> None:
    a, b = torch.randn(2, 4, 500, generator=torch.Generator().manual_seed(0)).unbind(0)
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    middle = slerp(a, b, 0.5)
    torch.testing.assert_close(middle.norm(dim=1), (a.norm(dim=1) + b.norm(dim=1)) / 2)
    torch.testing.assert_close((middle * a).sum(1) / a.norm(dim=1), (middle * b).sum(1) / b.norm(dim=1))


@pytest.mark.parametrize("kind", ["conv", "article"])
def test_the_exported_parts_draw_the_same(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model = request.getfixturevalue(kind)[0]
    parts, cond = Exported(model, tmp_path), Cond(("a green disc",), (1,))
    with torch.no_grad():
        words = model.wanted_and_avoided(cond, 0)
    drawn = runner.draw(parts, arrays(words), {"temperature": 0.8}, 11, Watch())
    np.testing.assert_allclose(drawn.clip(-1, 1), model.sample(cond, [11], temperature=0.8).numpy(), atol=1e-3)
    condition = {name: arrays(words[:1])[name] for name in model.inputs}
    found = parts.run("encoder", pixels=discs().pixels[:1].numpy(), **condition)[0]
    np.testing.assert_allclose(found, model.invert(discs().pixels[:1], words[:1]).numpy(), atol=1e-3)


def test_rate_and_distortion(conv: tuple[VAE, list[float]]) -> None:
    bits, psnr = rate_distortion(conv[0], discs().pixels, _words(conv[0]))
    assert 0 < bits < 5 and psnr > 10
    noisy, clear = (rate_distortion(Autoencoder(replace(SMALL, noise=noise)), pictures(4)) for noise in (0.5, 0.05))
    assert 0 < noisy[0] < clear[0] <= 8 * 16 / 256 * math.log2(1 + math.sqrt(2 / (math.pi * math.e)) / 0.05)


def _words(model: VAE) -> Words:
    with torch.no_grad():
        return model.words(discs(), drop=False)
