"""A picture to its noise and back: the inverse of the sampler, the codes of a model, and the way between two."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_diffusion import SMALL, lively
from test_samplers import DEVIATION, MEAN, exact

from imagewright.models.diffusion import Diffusion
from imagewright.models.samplers import PROCESSES, invert_ddim, noise_source, sample_ddim
from imagewright.models.technique import Cond


@pytest.mark.parametrize("process_name", PROCESSES)
def test_inversion_finds_the_noise_of_normal_data(process_name: str) -> None:
    """The exact flow takes noise z to MEAN + DEVIATION z, so inversion must find z."""
    process = PROCESSES[process_name]()
    z = np.linspace(-2, 2, 9)
    x = invert_ddim(exact(process), MEAN + DEVIATION * z, process.times(400)[::-1], process, rounds=1)
    np.testing.assert_allclose(x / process.levels(1.0)[1], z, atol=0.07)


@pytest.mark.parametrize("process_name", PROCESSES)
def test_fixed_point_iterations_bring_the_way_back_closer(process_name: str) -> None:
    process, data = PROCESSES[process_name](), MEAN + DEVIATION * np.linspace(-2, 2, 9)
    times = process.times(20)
    errors = []
    for rounds in (0, 1, 4):
        x = invert_ddim(exact(process), data, times[::-1], process, rounds)
        back = sample_ddim(exact(process), x, times, process, noise_source(0, x.shape))
        errors.append(np.abs(back - data).max())
    assert errors[1] < 0.7 * errors[0] and errors[2] < 0.7 * errors[0]


@pytest.fixture
def model() -> Diffusion:
    return lively(Diffusion(SMALL))


@pytest.mark.parametrize("process_name,prediction", [("flow", "x0"), ("cosine", "v"), ("edm", "edm")])
def test_pictures_come_back_through_their_codes(
    process_name: str, prediction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Diffusion(replace(SMALL, process=process_name, prediction=prediction))
    pixels = torch.from_numpy(noise_source(0, (3, 4, 8, 8))()).clamp(-2, 2) / 2 * DEVIATION + MEAN / 2
    exact_ = exact(model.process)
    monkeypatch.setattr(model, "_estimate", lambda x, t, *condition: (exact_(x, float(t[0])), x))
    words = model.prompted(["a", "b", "c"], [1, 2, 0])
    code = model.invert(pixels, words, steps=40)
    assert code.shape == (3, 4, 8, 8) and abs(code.std() - 1) < 0.15
    back = model.render(code, words, steps=40, guidance=1.0, sampler="ddim")
    torch.testing.assert_close(back, pixels.clamp(-1, 1), atol=0.03, rtol=0)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun"])
def test_the_code_of_a_seed_renders_what_the_seed_samples(model: Diffusion, sampler: str) -> None:
    sampled = model.sample(Cond(["a red disc"], [1]), [7], sampler=sampler)
    rendered = model.render(model.code(7), model.prompted(["a red disc"], [1]), sampler=sampler)
    torch.testing.assert_close(sampled, rendered, atol=1e-3, rtol=0)
    assert (sampled - model.render(model.code(8), model.prompted(["a red disc"], [1]))).abs().max() > 0.1


def test_rows_render_alone_and_padding_changes_nothing(model: Diffusion) -> None:
    words = model.prompted(["a red disc", "a blue disc"], [1, 1])
    codes = torch.cat([model.code(1), model.code(2)])
    both = model.render(codes, words)
    assert torch.equal(both[1:], model.render(codes[1:], words[1:]))
    cut = replace(words, tokens=words.tokens[:, :3], mask=words.mask[:, :3])
    torch.testing.assert_close(model.render(codes, cut), both, atol=1e-3, rtol=0)


def test_the_way_between_two_codes_keeps_their_length(model: Diffusion) -> None:
    a, b = model.code(1), model.code(2)
    torch.testing.assert_close(model.mix(a, b, 0.0), a)
    torch.testing.assert_close(model.mix(a, b, 1.0), b)
    middle = model.mix(a, b, 0.5)
    assert abs(middle.norm() - (a.norm() + b.norm()) / 2) < 0.03 * a.norm()
    assert ((a + b) / 2).norm() < 0.85 * a.norm()  # what a straight line would do
    torch.testing.assert_close(model.mix(a, a, 0.3), a, atol=1e-2, rtol=0)
