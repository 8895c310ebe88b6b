"""The diffusion model: parameterisations agree, one batch can be learned, a seed is one picture at any batch size."""

from dataclasses import replace

import pytest
import torch
from tests_support import discs_source

from imagewright.data.batch import Batch, Draws, TextTokens
from imagewright.models import registry
from imagewright.models.autoencoder import AutoencoderConfig
from imagewright.models.diffusion import Diffusion, DiffusionConfig, _error, random_masks, to_denoised
from imagewright.models.dit import DiT, DiTConfig
from imagewright.models.encoders import LatentsConfig, PixelsConfig
from imagewright.models.samplers import PROCESSES
from imagewright.models.technique import Cond
from imagewright.models.text import TextConfig
from imagewright.watch import Watch

SMALL = DiffusionConfig(
    encoder=PixelsConfig(size=8),
    network=DiTConfig(width=64, depth=2, heads=2, patch=2),
    text=TextConfig(width=32, depth=1, heads=2, max_tokens=8),
    steps=4,
)
FORMS = [("flow", "x0"), ("flow", "flow"), ("cosine", "eps"), ("cosine", "v"), ("cosine", "x0"), ("edm", "edm")]


def batch(rows: int, step: int = 0, total: int | None = None, start: int = 0, size: int = 8) -> Batch:
    draws = Draws(0, step, start, start + rows, total or rows)
    everything = discs_source(size).batch(0, 0, 0, total or rows, total or rows).pixels
    ids = torch.arange(total or rows)[:, None].expand(-1, 8) % 7 + 5
    rows_ = slice(start, start + rows)
    mask = torch.ones(rows, 8, dtype=torch.bool)
    text = TextTokens(ids[rows_].clone(), torch.zeros(rows, 8, 8, dtype=torch.long), mask)
    return Batch(draws, pixels=everything[rows_], text=text, style=torch.ones(rows, dtype=torch.long))


@pytest.mark.parametrize("process,prediction", FORMS)
def test_every_form_learns_one_batch(process: str, prediction: str) -> None:
    torch.manual_seed(0)
    model = Diffusion(replace(SMALL, process=process, prediction=prediction, drop_text=0.0, known_share=0.0))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for step in range(150):
        loss = model.loss(batch(8, step))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-20:]) < 0.6 * sum(losses[:20])


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "flow"])
def test_the_true_prediction_gives_back_the_data(process: str, prediction: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 3, 4, 4, 4, generator=generator)
    alpha, sigma = (torch.full((3, 1, 1, 1), level) for level in PROCESSES[process]().levels(0.4))
    truth = {"x0": x0, "eps": noise, "v": alpha * noise - sigma * x0, "flow": noise - x0}[prediction]
    found = to_denoised(truth, alpha * x0 + sigma * noise, alpha, sigma, prediction)
    torch.testing.assert_close(found, x0, atol=1e-4, rtol=1e-4)


def test_the_edm_form_is_table_1() -> None:
    """D = c_skip x + c_out F(c_in x, c_noise), and a loss of 1 whatever sigma where F is 0 and the data N(0, 1)."""
    model = Diffusion(replace(SMALL, process="edm", prediction="edm", times="log_normal"))
    asked = {}

    def network(x, t, *condition, maps=None):
        asked.update(x=x, t=t)
        return torch.full_like(x, 0.5)

    model.network.forward = network
    x, t = torch.randn(3, 4, 8, 8), torch.tensor([0.2, 0.5, 0.9])
    sigma = model.process.levels(t)[1].view(-1, 1, 1, 1)
    denoised, _ = model._estimate(x, t)
    torch.testing.assert_close(asked["x"], x / (1 + sigma**2).sqrt())
    torch.testing.assert_close(asked["t"], sigma.flatten().log() / 4)
    torch.testing.assert_close(denoised, x / (1 + sigma**2) + 0.5 * sigma / (1 + sigma**2).sqrt())
    model.network.forward = lambda x, t, *condition, maps=None: torch.zeros_like(x)
    x0 = torch.randn(256, 4, 8, 8)
    for level in (0.1, 0.5, 0.9):
        sigma = model.process.levels(torch.tensor(level))[1]
        noise = torch.randn_like(x0)
        denoised, raw = model._estimate(x0 + sigma * noise, torch.full((256,), level))
        error = _error(raw, denoised, x0, noise, torch.tensor(1.0), sigma, "edm").square().mean()
        assert abs(error - 1) < 0.05


@pytest.mark.parametrize(
    "times,mean,deviation,value",
    [
        ("uniform", 0.5, 12**-0.5, lambda model, t: t),
        ("logit_normal", 0.3, 0.8, lambda model, t: torch.logit(t)),
        ("log_normal", -0.5, 1.2, lambda model, t: model.process.levels(t)[1].log()),
    ],
)
def test_times_of_training_are_drawn_as_said(times: str, mean: float, deviation: float, value) -> None:
    form = {"process": "edm", "prediction": "edm"} if times == "log_normal" else {}
    model = Diffusion(replace(SMALL, times=times, t_mean=mean, t_std=deviation, **form))
    found = value(model, model._training_times(Draws(0, 0, 0, 20_000, 20_000)))
    assert abs(found.mean() - mean) < 0.03 and abs(found.std() - deviation) < 0.03


def test_forms_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="go together"):
        replace(SMALL, process="edm")
    with pytest.raises(ValueError, match="log_normal"):
        replace(SMALL, times="log_normal")


def test_an_estimate_of_pixels_stays_in_their_range() -> None:
    """At t = 1 eps says next to nothing of x_0: unclipped, the first step would throw the sample far out."""
    model = lively(Diffusion(replace(SMALL, process="cosine", prediction="eps", sampler="ancestral")))
    seen = []
    model.sample(Cond(["cat"], [0]), [1], guidance=1.0, watch=Watch(trace=lambda *step: seen.append(step)))
    steps = [array for kind, _, array, _ in seen if kind == "step"]
    assert all(abs(array).max() <= 1 for array in steps)


def test_looking_on_changes_nothing_and_shows_each_step_and_word() -> None:
    model = lively(Diffusion(SMALL))
    seen, cond = [], Cond(["a blueish fox"], [1])
    watched = model.sample(cond, [3], watch=Watch(trace=lambda *event: seen.append(event)))
    torch.testing.assert_close(watched, model.sample(cond, [3]))
    steps = [event for event in seen if event[0] == "step"]
    assert [index for _, index, _, _ in steps] == [0, 1, 2, 3] and steps[0][2].shape == (4, 8, 8)
    assert [facts["t"] for *_, facts in steps] == [1.0, 0.75, 0.5, 0.25] == [facts["sigma"] for *_, facts in steps]
    ((_, _, maps, facts),) = [event for event in seen if event[0] == "attention"]
    assert facts["words"] == ["a", "blue", "##ish", "fox"] and maps.shape == (4, 4, 4)
    assert (maps >= 0).all() and maps.sum(0).max() <= 1


def test_attention_maps_are_the_softmax_of_the_text() -> None:
    model = lively(Diffusion(SMALL))
    x, t = torch.randn(2, 4, 8, 8), torch.rand(2)
    words = model.prompted(["a cat", "dog"], [0, 0])
    inputs = (x, t, *words.flat(), x, torch.zeros(2, 1, 8, 8))
    denoised, attention = model._looked(*inputs)
    torch.testing.assert_close(denoised, model._clipped(model._estimate(*inputs)[0]))
    assert attention.shape == (2, 16, 8)
    assert attention[1, :, 1:].abs().max() < 1e-6  # padding is not looked at
    assert (attention.sum(-1) > 0).all() and (attention.sum(-1) < 1).all()


def test_a_seed_is_one_picture_at_any_batch_size() -> None:
    model = lively(Diffusion(SMALL))
    prompts, styles = ["red fox", "blue car", "red fox"], [1, 2, 1]
    together = model.sample(Cond(prompts, styles), [5, 6, 7])
    for i in range(3):
        alone = model.sample(Cond(prompts[i : i + 1], styles[i : i + 1]), [5 + i])
        assert torch.equal(alone[0], together[i])
    assert not torch.equal(together[0], together[2])


def test_text_style_and_the_known_picture_reach_the_output() -> None:
    model = lively(Diffusion(SMALL))
    x, t = torch.randn(1, 4, 8, 8), torch.tensor([0.5])
    nothing = torch.zeros(1, 4, 8, 8), torch.zeros(1, 1, 8, 8)
    plain = model.denoised(x, t, model.prompted(["cat"], [1]), *nothing)
    assert not torch.allclose(plain, model.denoised(x, t, model.prompted(["dog"], [1]), *nothing))
    assert not torch.allclose(plain, model.denoised(x, t, model.prompted(["cat"], [2]), *nothing))
    known = torch.ones(1, 4, 8, 8), torch.ones(1, 1, 8, 8)
    assert not torch.allclose(plain, model.denoised(x, t, model.prompted(["cat"], [1]), *known))


def test_padding_behind_the_text_changes_nothing() -> None:
    network = lively(DiT(DiTConfig(channels=4, side=8, width=64, depth=2, heads=2, text_width=32)))
    x, text, pooled = torch.randn(2, 4, 8, 8), torch.randn(2, 6, 32), torch.randn(2, 32)
    rest = torch.zeros(2, dtype=torch.long), torch.zeros(2, 4, 8, 8), torch.zeros(2, 1, 8, 8)
    mask = torch.tensor([[True] * 3 + [False] * 3] * 2)
    t = torch.tensor([0.2, 0.9])
    padded = network(x, t, text, pooled, mask, *rest)
    cut = network(x, t, text[:, :3], pooled, mask[:, :3], *rest)
    torch.testing.assert_close(padded, cut, rtol=1e-5, atol=1e-5)


def test_a_slice_of_the_batch_sees_the_numbers_of_the_whole() -> None:
    """Two processes with half the rows each must compute what one computes."""
    model = lively(Diffusion(replace(SMALL, drop_text=0.5, drop_style=0.5, known_share=0.5)))
    whole = model.loss(batch(8))["loss"]
    halves = [model.loss(batch(4, total=8, start=start))["loss"] for start in (0, 4)]
    torch.testing.assert_close(sum(halves) / 2, whole)


def test_masks_know_a_box_or_all_but_a_box() -> None:
    masks = random_masks(Draws(0, 0, 0, 400, 400), 8, share=0.5)
    share = (masks.flatten(1).sum(1) > 0).float().mean()
    assert 0.4 < share < 0.6
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    assert random_masks(Draws(0, 0, 0, 50, 50), 8, share=0.0).sum() == 0


def test_configs_survive_json_and_unknown_ones_are_refused() -> None:
    import json

    from imagewright.errors import ModelCorruptError

    config = replace(SMALL, encoder=LatentsConfig(AutoencoderConfig(size=32, widths=(16, 32), latent=8)))
    assert registry.from_dict(json.loads(json.dumps(registry.to_dict(config)))) == config
    with pytest.raises(ModelCorruptError):
        registry.from_dict({"type": "DiffusionConfig", "wings": 2})
    with pytest.raises(ModelCorruptError):
        registry.from_dict({"type": "Wings"})


def lively(module: torch.nn.Module) -> torch.nn.Module:
    """Fill the zeros that a fresh network starts with, so that every input matters."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(std=0.2)
    return module.eval()
