"""The picture tokenizer: quantisers against their formulas, codes in range, and that it learns to restore pictures."""

from dataclasses import replace

import pytest
import torch
from test_vae import pictures
from torch import nn

from imagewright.data.batch import Batch, Draws
from imagewright.models.vqvae import DEAD, FSQ, VQ, PictureTokenizer, TokenizerConfig

SMALL = TokenizerConfig(size=16, widths=(16, 32), encoder_blocks=(1, 1), decoder_blocks=(1, 1), levels=(7, 6, 5, 4))
LEARNED = replace(SMALL, quantiser="vq", codebook=32, latent=6)
SEVERAL = replace(LEARNED, coarse_scales=(1, 2))
EACH = pytest.mark.parametrize("config", [SMALL, LEARNED, SEVERAL, replace(SMALL, coarse_scales=(1, 3))])


def batch(rows: int, step: int = 0) -> Batch:
    return Batch(Draws(0, step, 0, rows, rows), pixels=pictures(rows))


def test_fsq_codes_and_values_are_each_others_inverse() -> None:
    fsq = FSQ((7, 6, 5, 4))
    codes = torch.arange(7 * 6 * 5 * 4)
    values = fsq.values(codes)
    assert values.unique(dim=0).shape == (840, 4)
    assert values.amin(0).tolist() == [-1] * 4 and values.amax(0).tolist() == [1] * 4
    torch.testing.assert_close(fsq.codes(values), codes)
    torch.testing.assert_close(fsq.codes(3 * values).max(), codes[-1])  # beyond the bounds: the outermost levels


def test_fsq_rounds_to_the_nearest_level() -> None:
    fsq = FSQ((5, 2))
    values = fsq.values(fsq.codes(torch.tensor([[0.2, 0.1], [0.3, -0.1], [-0.9, 1.0]])))
    torch.testing.assert_close(values, torch.tensor([[0.0, 1.0], [0.5, -1.0], [-1.0, 1.0]]))


def test_vq_takes_the_nearest_row() -> None:
    vq, z = VQ(16, 3), torch.randn(40, 3)
    nearest = (z[:, None] - vq.codebook.detach()).square().sum(2).argmin(1)
    torch.testing.assert_close(vq.codes(z), nearest)


@EACH
def test_codes_are_in_range_and_stand_for_what_was_quantised(config: TokenizerConfig) -> None:
    model = PictureTokenizer(config).eval()
    with torch.no_grad():
        codes = model.tokens(pictures(3))
        sums, vectors, found = model.quantise(model.encode(pictures(3)))
    assert codes.shape == (3, config.positions) and codes.dtype == torch.int64
    assert codes.min() >= 0 and codes.max() < config.codes
    assert vectors.shape == (3, config.positions, config.latent) and codes.equal(found)
    torch.testing.assert_close(model.sums(codes)[-1], sums[-1])
    assert len(sums) == len(config.scales)
    assert model.pictures(codes).shape == (3, 4, 16, 16)


def test_codes_still_to_come_count_for_nothing() -> None:
    model = PictureTokenizer(SEVERAL)
    codes, other = torch.randint(32, (2, 1, SEVERAL.positions))
    made = (torch.arange(SEVERAL.positions) < 7)[None].float()
    mixed = torch.where(made > 0, codes, other)
    torch.testing.assert_close(model.sums(codes, made)[-1], model.sums(mixed, made)[-1])
    assert not model.sums(codes)[-1].allclose(model.sums(mixed)[-1])


def test_gradients_pass_straight_through_the_rounding() -> None:
    model = PictureTokenizer(SMALL)
    model.decoder = nn.Identity()  # type: ignore[assignment]
    z_e = torch.zeros(1, 4, 4, 4, requires_grad=True)
    model.encode = lambda pixels: z_e  # type: ignore[method-assign]
    pixels = torch.full((1, 4, 4, 4), 0.9)
    model.loss(Batch(Draws(0, 0, 0, 1, 1), pixels=pixels))["l1"].backward()
    torch.testing.assert_close(z_e.grad, torch.full_like(z_e, -1 / 64))  # of |z_q - 0.9|, meaned


def test_the_loss_of_vq_is_that_of_the_paper() -> None:
    model = PictureTokenizer(LEARNED).eval()
    with torch.no_grad():
        z_e = model.encode(pictures(3))
        distance = (z_e.permute(0, 2, 3, 1)[..., None, :] - model.quantiser.codebook).square().sum(-1)  # (B, h, w, K)
        term = distance.min(-1).values.mean() / LEARNED.latent
        losses = model.loss(batch(3))
        plain = PictureTokenizer(replace(LEARNED, commitment=0.0)).eval()
        plain.load_state_dict(model.state_dict())
        without = plain.loss(batch(3))
    torch.testing.assert_close(losses["codebook"], term)
    torch.testing.assert_close(losses["loss"] - without["loss"], LEARNED.commitment * term)
    edges = losses["loss"] - losses["l1"] - (1 + LEARNED.commitment) * term
    assert edges > 0


def test_each_term_of_vq_teaches_its_own_side() -> None:
    model = PictureTokenizer(LEARNED)
    losses = model.loss(batch(3))
    book, head = model.quantiser.codebook, model.encoder[-1].weight
    assert torch.autograd.grad(losses["codebook"], [book, head], retain_graph=True, allow_unused=True)[1] is None
    assert torch.autograd.grad(losses["commitment"], [book, head], allow_unused=True)[0] is None


def test_dead_codes_restart_where_the_draws_say_in_any_split_of_the_batch() -> None:
    def restarted(seed: int) -> torch.Tensor:
        torch.manual_seed(0)
        vq = VQ(8, 2)
        vq.used.fill_(DEAD / 2)
        z = torch.arange(24.0).view(3, 4, 2) + 100
        vq.restart(z, torch.zeros(3, 4, dtype=torch.long), Draws(seed, 0, 0, 3, 3))
        return vq.codebook.detach()

    torch.manual_seed(0)
    before = VQ(8, 2).codebook.detach()
    after = restarted(1)
    assert after.equal(restarted(1)) and not after.equal(restarted(2))
    assert after[0].equal(before[0])  # the one code in use
    assert (after[1:] >= 100).all()
    rows = {tuple(row) for row in (torch.arange(24.0).view(12, 2) + 100).tolist()}
    assert {tuple(row) for row in after[1:].tolist()} <= rows


def test_held_out_rows_restart_nothing() -> None:
    model = PictureTokenizer(LEARNED)
    model.quantiser.used.fill_(0.0)
    before = model.quantiser.codebook.detach().clone()
    with torch.no_grad():
        losses = model.eval().loss(batch(2))
    assert torch.isfinite(losses["loss"]) and model.quantiser.codebook.equal(before)
    assert 1 <= losses["perplexity"] <= losses["used"] <= 32


@pytest.mark.parametrize("config", [SMALL, LEARNED, SEVERAL])
def test_it_learns_one_batch(config: TokenizerConfig) -> None:
    torch.manual_seed(0)
    model = PictureTokenizer(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    values = []
    for step in range(120):
        losses = model.loss(batch(16, step))
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        values.append(losses["psnr"].item())
    assert values[-1] > values[0] + 5, values[::40]
    assert model.eval().reconstruct(pictures(2)).abs().max() <= 1


def test_levels_and_channels_must_agree() -> None:
    with pytest.raises(ValueError, match="one size only"):
        PictureTokenizer(TokenizerConfig(detail=8))
    with pytest.raises(ValueError, match="3 levels for 4"):
        replace(SMALL, levels=(8, 8, 8))
