"""The U-Net: called like the DiT, any side, every input matters, one batch can be learned."""

from dataclasses import replace

import pytest
import torch
from test_diffusion import SMALL, batch, lively

from imagewright.models import registry
from imagewright.models.autoencoder import AutoencoderConfig
from imagewright.models.diffusion import Diffusion, DiffusionConfig
from imagewright.models.encoders import LatentsConfig
from imagewright.models.technique import Cond
from imagewright.models.unet import UNet, UNetConfig, sides

NETWORK = UNetConfig(patch=2, widths=(16, 32), blocks=1, attention=1, head=16)


def inputs(config: UNetConfig, rows: int = 2) -> tuple[torch.Tensor, ...]:
    shape = (config.channels, config.side, config.side)
    text, mask = torch.randn(rows, 6, config.text_width), torch.ones(rows, 6, dtype=torch.bool)
    return (
        *(torch.randn(rows, *shape), torch.rand(rows), text, torch.randn(rows, config.text_width), mask),
        *(torch.ones(rows, dtype=torch.long), torch.randn(rows, *shape), torch.ones(rows, 1, *shape[1:])),
    )


@pytest.mark.parametrize(
    "config",
    [
        replace(NETWORK, side=28),
        replace(NETWORK, side=8, channels=16, patch=1, widths=(16, 32, 48), attention=3),
        replace(NETWORK, side=12, patch=4, blocks=2),
    ],
)
def test_shape_in_is_shape_out_and_maps_are_of_the_finest_attention(config: UNetConfig) -> None:
    network, given = lively(UNet(config)), inputs(config)
    maps: list[torch.Tensor] = []
    made = network(*given, maps=maps)
    assert made.shape == given[0].shape
    tokens = sides(config)[-config.attention] ** 2
    assert {tuple(m.shape) for m in maps} == {(2, tokens, 6)}
    torch.testing.assert_close(made, network(*given))


def test_every_input_reaches_the_output() -> None:
    network, given = lively(UNet(replace(NETWORK, side=16))), list(inputs(replace(NETWORK, side=16)))
    plain = network(*given)
    for i, other in enumerate(inputs(replace(NETWORK, side=16))):
        other = 1 - other if i == 7 else ~other if i == 4 else other + 1 if i == 5 else other
        if i == 4:
            other[:, 0] = True
        changed = network(*given[:i], other, *given[i + 1 :])
        assert (changed - plain).abs().max() > 1e-4, i


def test_padding_behind_the_text_changes_nothing() -> None:
    config = replace(NETWORK, side=16)
    network, (x, t, text, pooled, mask, *rest) = lively(UNet(config)), inputs(config)
    mask[:, 3:] = False
    padded = network(x, t, text, pooled, mask, *rest)
    torch.testing.assert_close(padded, network(x, t, text[:, :3], pooled, mask[:, :3], *rest), rtol=1e-4, atol=1e-4)


def test_a_fresh_network_says_nothing() -> None:
    """Zero-initialised ends: training starts from the prediction 0, not from noise."""
    config = replace(NETWORK, side=16)
    assert UNet(config)(*inputs(config)).abs().max() == 0


def test_it_learns_one_batch_and_a_seed_is_one_picture() -> None:
    torch.manual_seed(0)
    model = Diffusion(replace(SMALL, network=replace(NETWORK, patch=1), drop_text=0.0, known_share=0.0))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for step in range(40):
        loss = model.loss(batch(8, step))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    model.eval()
    together = model.sample(Cond(["red fox", "car"], [1, 2]), [5, 6])
    assert torch.equal(together[1:], model.sample(Cond(["car"], [2]), [6]))


def test_the_network_is_fitted_to_its_encoder_and_survives_json() -> None:
    autoencoder = AutoencoderConfig(size=32, widths=(16, 32), latent=8)
    model = Diffusion(DiffusionConfig(LatentsConfig(autoencoder), NETWORK, SMALL.text))
    assert (model.config.network.channels, model.config.network.side) == (8, 8)
    assert model.config.network.text_width == SMALL.text.width
    assert registry.from_dict(registry.to_dict(model.config)) == model.config


def test_time_modulates() -> None:
    config = replace(NETWORK, side=16)
    network = lively(UNet(config))
    x, _, *rest = inputs(config, 1)
    levels = [network(x, torch.tensor([level]), *rest) for level in (0.1, 0.1, 0.9)]
    assert torch.equal(levels[0], levels[1]) and not torch.allclose(levels[0], levels[2])


@pytest.mark.parametrize(
    "change,said",
    [({"side": 15}, "multiple of the patch"), ({"widths": (12, 32)}, "multiples of 8"),
     ({"attention": 0}, "can attend"), ({"head": 24}, "head")],
)  # fmt: skip
def test_sizes_that_do_not_fit_are_refused(change: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        UNet(replace(NETWORK, **{"side": 16, **change}))
