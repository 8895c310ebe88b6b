"""The autoencoder: shapes, bounds, and that it learns to restore pictures."""

import torch

from imagewright.data.batch import Batch, Draws
from imagewright.models.vae import Autoencoder, AutoencoderConfig

SMALL = AutoencoderConfig(size=16, widths=(16, 32), encoder_blocks=(1, 1), decoder_blocks=(1, 1), latent=8)


def pictures(rows: int) -> torch.Tensor:
    """Premultiplied discs of different colours and places, (rows, 4, 16, 16) in [-1, 1]."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    centre = 4 + 8 * torch.rand(rows, 2, 1, 1, generator=generator)
    alpha = ((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2 < 16).float()[:, None]
    return torch.cat([alpha * torch.rand(rows, 3, 1, 1, generator=generator), alpha], dim=1) * 2 - 1


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
    assert values[-1] > values[0] + 8, values[::40]


def test_a_picture_is_restored_alike_in_any_company() -> None:
    model, pixels = Autoencoder(SMALL).eval(), pictures(4)
    torch.testing.assert_close(model.reconstruct(pixels)[:1], model.reconstruct(pixels[:1]), rtol=1e-4, atol=1e-5)
