"""The article's GAN, the adversarial losses in closed form, and augmentations that real and made pictures share."""

import math

import numpy as np
import onnxruntime
import pytest
import torch
from tests_support import discs_source
from torch import Tensor

from imagewright.data.batch import Batch, Draws
from imagewright.export import write_graph
from imagewright.models import registry
from imagewright.models.diffaugment import Augmentation
from imagewright.models.gan import GAN, GANConfig, grey, relativistic, zero_centred_penalty
from imagewright.models.technique import Cond
from imagewright.training.presets import PRESETS

SMALL = GANConfig(size=8, z=8, hidden=32)


def gan(config: GANConfig = SMALL) -> GAN:
    torch.manual_seed(0)
    return GAN(config)


def test_the_articles_networks_have_its_sizes() -> None:
    for preset, hidden in (("article", 256), ("article-small", 128)):
        model = registry.build(PRESETS["gan"][preset].model)
        assert [tuple(layer.weight.shape) for layer in model.G if hasattr(layer, "weight")] == [
            (hidden, 100),
            (784, hidden),
        ]
        assert [tuple(layer.weight.shape) for layer in model.D if hasattr(layer, "weight")] == [
            (hidden, 784),
            (1, hidden),
        ]
        assert {phase.betas for phase in model.phases} == {(0.5, 0.999)}


@pytest.mark.parametrize("saturating", [False, True])
def test_the_losses_are_the_articles(saturating: bool) -> None:
    model = gan(GANConfig(size=8, z=8, hidden=32, saturating=saturating))
    pixels = discs_source(8).batch(0, 0, 0, 4, 4).pixels
    made = model.G(Draws(0, 0, 0, 4, 4).randn(8))
    p_real, p_made = torch.sigmoid(model.D(grey(pixels).flatten(1))), torch.sigmoid(model.D(made))
    minimax = (p_real.log() + (1 - p_made).log()).mean()  # equation 1, which D maximises
    discriminator = model.loss(Batch(Draws(0, 0, 0, 4, 4), pixels=pixels), "discriminator")["loss"]
    torch.testing.assert_close(discriminator, -minimax)
    generator = model.loss(Batch(Draws(0, 0, 0, 4, 4), pixels=pixels), "generator")["loss"]
    torch.testing.assert_close(generator, (1 - p_made).log().mean() if saturating else -p_made.log().mean())


def test_the_article_learns_a_few_pictures() -> None:
    model = gan()
    pixels = discs_source(8).batch(0, 0, 0, 4, 4).pixels.repeat(8, 1, 1, 1)
    optimizers = {
        phase.name: torch.optim.Adam(model.param_groups(phase.name)["decay"], lr=2e-3, betas=phase.betas)
        for phase in model.phases
    }

    def away() -> float:
        made = grey(model.sample(Cond([""] * 16, [0] * 16), list(range(16)))).flatten(1)
        return float(torch.cdist(made, grey(pixels[:4]).flatten(1)).amin(1).mean())

    before = away()
    for step in range(300):
        for name, optimizer in optimizers.items():
            model.zero_grad()
            model.loss(Batch(Draws(0, step, 0, 32, 32), pixels=pixels), name)["loss"].backward()
            optimizer.step()
    assert away() < before / 2


def test_pictures_are_grey_opaque_and_the_seeds_own() -> None:
    model = gan()
    two = model.sample(Cond(["", ""], [0, 0]), [3, 4])
    assert two.shape == (2, 4, 8, 8)
    assert (two[:, 3] == 1).all() and (two[:, 0] == two[:, 2]).all()
    torch.testing.assert_close(two[1:], model.sample(Cond([""], [0]), [4]), rtol=0, atol=0)
    assert not torch.equal(two[0], two[1])
    torch.testing.assert_close(model.render(model.code(4)), two[1:], rtol=0, atol=0)
    torch.testing.assert_close(grey(two)[:, 0], two[:, 0])


def test_transparent_is_white_in_grey() -> None:
    clear = torch.full((1, 4, 2, 2), -1.0)  # premultiplied: no colour, no alpha
    torch.testing.assert_close(grey(clear), torch.ones(1, 1, 2, 2))


def test_onnx_parts_equal_torch(tmp_path) -> None:
    model = gan()
    for part, graph in model.graphs().items():
        write_graph(graph, tmp_path / f"{part}.onnx", 32)
    generator, critic = (onnxruntime.InferenceSession(tmp_path / f"{part}.onnx") for part in ("generator", "critic"))
    pixels = generator.run(None, {"z": model.code(5).numpy()})[0]
    np.testing.assert_allclose(pixels, model.sample(Cond([""], [0]), [5]).numpy(), atol=1e-5)
    with torch.no_grad():
        logit = model.D(grey(torch.from_numpy(pixels)).flatten(1))[:, 0].numpy()
    np.testing.assert_allclose(critic.run(None, {"pixels": pixels})[0], logit, atol=1e-4)


def test_the_relativistic_loss_compares_pairs() -> None:
    preferred, other = torch.tensor([2.0, 0.0]), torch.tensor([1.0, 3.0])
    want = (math.log1p(math.exp(-1.0)) + math.log1p(math.exp(3.0))) / 2
    assert relativistic(preferred, other).item() == pytest.approx(want, rel=1e-6)


def test_the_penalty_of_a_linear_critic_is_its_squared_weight() -> None:
    weight, x = torch.randn(2, 3, 3), torch.randn(5, 2, 3, 3)
    penalty = zero_centred_penalty(lambda x: (weight * x).flatten(1).sum(1), x)
    torch.testing.assert_close(penalty, weight.square().sum().expand(5))


def test_the_penalty_and_its_slope_match_finite_differences() -> None:
    x = torch.randn(3, 4, dtype=torch.float64)
    weight = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)

    def critic(x: Tensor) -> Tensor:
        return torch.tanh(x @ weight).pow(2).sum(1)

    step = 1e-5
    slopes = [(critic(x + step * e) - critic(x - step * e)) / (2 * step) for e in torch.eye(4, dtype=torch.float64)]
    torch.testing.assert_close(zero_centred_penalty(critic, x), torch.stack(slopes).square().sum(0), rtol=1e-6, atol=0)
    assert torch.autograd.gradcheck(lambda _: zero_centred_penalty(critic, x), weight)


def augmentation(share: float = 1.0, rows: int = 64, step: int = 0) -> Augmentation:
    return Augmentation.drawn(Draws(0, step, 0, rows, rows), 8, share)


def test_an_augmentation_moves_and_cuts() -> None:
    augment = augmentation()
    assert set(augment.shift.unique().tolist()) == {-1, 0, 1}
    x = torch.randn(64, 3, 8, 8)
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    for row, (down, right) in enumerate(augment.shift.tolist()):
        want = padded[row, :, 1 - down : 9 - down, 1 - right : 9 - right] * augment.keep[row]
        torch.testing.assert_close(augment(x)[row], want)
    cut = (augment.keep == 0).flatten(1).sum(1)
    assert cut.max() == 16 and cut.min() >= 4  # a box of 4x4, partly outside at the border


def test_an_augmentation_treats_all_alike_and_follows_from_the_draws() -> None:
    x = torch.randn(64, 3, 8, 8)
    augment = augmentation()
    torch.testing.assert_close(augment(x) + augment(2 * x), augment(3 * x))  # one linear map, whatever it is given
    torch.testing.assert_close(augment(x), augmentation()(x), rtol=0, atol=0)
    assert not torch.equal(augment(x), augmentation(step=1)(x))
    half = Augmentation.drawn(Draws(0, 0, 32, 64, 64), 8, 1.0)
    torch.testing.assert_close(half(x[32:]), augment(x)[32:], rtol=0, atol=0)
    torch.testing.assert_close(augment[::4](x[::4]), augment(x)[::4], rtol=0, atol=0)


def test_only_a_share_is_augmented() -> None:
    x = torch.randn(64, 3, 8, 8)
    torch.testing.assert_close(augmentation(0.0)(x), x, rtol=0, atol=0)
    changed = (augmentation(0.5)(x) != x).flatten(1).any(1)
    assert 16 < changed.sum() < 48


def test_an_augmentation_can_be_differentiated_twice() -> None:
    augment = augmentation(rows=2)
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(augment, x)
    assert torch.autograd.gradgradcheck(augment, x)
