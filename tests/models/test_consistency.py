"""Few-step students: exact at t = 0, equal to the guided teacher where they must be, better for their training."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported import Exported, arrays
from tests_support import discs_source
from torch import Tensor, nn

from imagewright.data.batch import Batch, Draws, TextTokens
from imagewright.engines.engine import adapt, capabilities
from imagewright.engines.runners import diffusion as runner
from imagewright.engines.trained import defaults
from imagewright.errors import TrainingError
from imagewright.models.consistency import Consistency, ConsistencyConfig, student_of
from imagewright.models.diffusion import EDITED, Diffusion, DiffusionConfig
from imagewright.models.dit import DiTConfig
from imagewright.models.encoders import PixelsConfig
from imagewright.models.technique import Cond
from imagewright.models.text import TextConfig
from imagewright.request import ImageRequest
from imagewright.source import Source
from imagewright.watch import Watch

BASE = DiffusionConfig(
    encoder=PixelsConfig(size=8),
    network=DiTConfig(width=64, depth=2, heads=2, patch=2, copies=True, dropout=0.1),
    text=TextConfig(width=32, depth=1, heads=2, max_tokens=8),
    edit_share=0.3,
)
MEAN, DEVIATION, LEVELS = 0.7, 0.5, 16  # of the data in the closed form, and what its network can tell apart
TINY = replace(BASE, encoder=PixelsConfig(size=2, channels=1), drop_text=0.0, drop_style=0.0, known_share=0.0)


def teacher(config: DiffusionConfig = BASE) -> Diffusion:
    """An untrained model whose predictions depend on all that it is told."""
    torch.manual_seed(1)
    model = Diffusion(config)
    for parameter in (model.network.patch_out.weight, model.network.modulation.weight, model.network.final.weight):
        nn.init.normal_(parameter, std=0.1)
    return model


def student(base: Diffusion, **changes: Any) -> Consistency:
    """Of the teacher, with its weights."""
    model = Consistency(student_of(ConsistencyConfig(**changes), base.config))
    model.load_state_dict(base.state_dict())
    model.learn_from(base)
    return model


def batch(rows: int = 6, step: int | None = 0) -> Batch:
    pixels = discs_source(8).batch(0, 0, 0, 2 * rows, 2 * rows).pixels
    ids = torch.arange(rows)[:, None].expand(-1, 8) % 7 + 5
    text = TextTokens(ids.clone(), torch.zeros(rows, 8, 8, dtype=torch.long), torch.ones(rows, 8, dtype=torch.bool))
    return Batch(
        Draws(0, step or 0, 0, rows, rows), pixels=pixels[:rows], before=pixels[rows:], step=step,
        edited=torch.arange(rows) % 3 == 0, text=text, style=torch.ones(rows, dtype=torch.long),
    )  # fmt: skip


def test_nothing_changes_at_no_noise() -> None:
    model, x = student(teacher()), torch.randn(3, 4, 8, 8)
    words, known = model.prompted(["a", "b", "c"], [0, 1, 2]), torch.randn(3, 4, 8, 8)
    for mask in (0.0, 1.0, EDITED):
        found = model.denoised(x, torch.zeros(3), words, known, torch.full((3, 1, 8, 8), mask))
        assert torch.equal(found, x)


def test_the_parts_are_the_teachers_and_the_sampling_is_its_own() -> None:
    config = student_of(ConsistencyConfig(steps=2), replace(BASE, steps=50, train_text=True, known_share=0.4))
    assert (config.steps, config.train_text, config.known_share, config.edit_share) == (2, False, 0.4, 0.3)
    assert config.network == replace(BASE.network, dropout=0.0) and config.encoder == BASE.encoder


def test_the_target_is_the_guided_estimate_that_sampling_would_use() -> None:
    """For rows with a known part, with a picture to edit, and with neither."""
    base = teacher(replace(BASE, known_share=0.5)).eval()
    model = student(base, guidance=3.0)
    given = model.exercise(batch())
    assert {-1.0, 0.0, 1.0} == set(given.mask.flatten().tolist())
    x = model.noised(given.x0, given.noise, given.t)
    found = model._target(given, x, 0)
    nothing = base.prompted([""], [0])
    for i in range(len(x)):
        inputs = x[i : i + 1], given.t[i : i + 1]
        shown = given.known[i : i + 1], given.mask[i : i + 1]
        wanted, avoided = (base.denoised(*inputs, words, *shown) for words in (given.words[i : i + 1], nothing))
        want = base._clipped(avoided + 3.0 * (wanted - avoided))
        torch.testing.assert_close(found[i : i + 1], want, atol=1e-5, rtol=1e-5)


def test_k_grows_with_the_steps_and_halves_the_way() -> None:
    model = student(teacher(), halvings=2, halve_every=10)
    assert [model.halved(step) for step in (0, 9, 10, 19, 20, 99, None)] == [0, 0, 1, 1, 2, 2, 2]


def test_a_student_without_a_teacher_says_so_unless_it_needs_none() -> None:
    torch.manual_seed(0)
    with pytest.raises(TrainingError, match="learns from a trained diffusion model"):
        Consistency(student_of(ConsistencyConfig(), BASE)).loss(batch())
    alone = Consistency(student_of(ConsistencyConfig(target="data"), BASE))
    assert alone.loss(batch(step=None))["loss"].isfinite()


def test_the_teacher_is_neither_trained_nor_saved() -> None:
    base = teacher()
    model, before = student(base), {name: p.clone() for name, p in base.state_dict().items()}
    assert set(model.state_dict()) == set(before)
    model.loss(batch())["loss"].backward()
    assert all(p.grad is None for p in base.parameters())
    assert any(p.grad is not None for p in model.parameters())
    assert all(torch.equal(p, before[name]) for name, p in base.state_dict().items())


class Affine(nn.Module):
    """A network for data from N(m, DEVIATION^2) where m is MEAN for style 1 and 0 for style 0. `exact`: the best
    denoiser; trained: one gain and one shift for each of LEVELS + 1 levels of noise."""

    def __init__(self, exact: bool) -> None:
        super().__init__()
        self.exact = exact
        self.gain, self.shift = (nn.Parameter(torch.zeros(LEVELS + 1)) for _ in range(2))

    def at(self, values: Tensor, t: Tensor) -> Tensor:
        low = (t * LEVELS).floor().clamp(max=LEVELS - 1).long()
        return torch.lerp(values[low], values[low + 1], t * LEVELS - low).view(-1, 1, 1, 1)

    def forward(self, x, t, text, pooled, text_mask, style, known, mask, maps=None):  # type: ignore[no-untyped-def]
        if not self.exact:
            return self.at(self.gain, t) * x + self.at(self.shift, t)
        t, mean = t.view(-1, 1, 1, 1), MEAN * style.view(-1, 1, 1, 1)
        gain = (1 - t) * DEVIATION**2 / ((1 - t) ** 2 * DEVIATION**2 + t**2)
        return mean + gain * (x - (1 - t) * mean)


def of_exact(**changes: Any) -> Consistency:
    """An untrained student of the best denoiser."""
    base, model = Diffusion(TINY), Consistency(student_of(ConsistencyConfig(**changes), TINY))
    base.network, model.network = Affine(exact=True), Affine(exact=False)
    model.learn_from(base)
    return model


def trained(model: Consistency, steps: int, rows: int = 64) -> Consistency:
    """`model` after some steps on the data."""
    generator = torch.Generator().manual_seed(0)
    text = TextTokens(*(part[:1, :1].expand(rows, *part[:1, :1].shape[1:]) for part in vars(batch().text).values()))
    optimizer = torch.optim.Adam(model.network.parameters(), lr=0.02, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    for step in range(steps):
        latents = MEAN + DEVIATION * torch.randn(rows, 1, 2, 2, generator=generator)
        style = torch.ones(rows, dtype=torch.long)
        loss = model.loss(Batch(Draws(0, step, 0, rows, rows), latents=latents, text=text, style=style, step=step))
        optimizer.zero_grad()
        loss["loss"].backward()
        optimizer.step()
        schedule.step()
    return model


def in_one_pass(model: Diffusion, x: Tensor, style: int = 1) -> Tensor:
    """Its estimate from noise alone."""
    words = model.prompted(["a"], [style])
    words = type(words)(*(part.expand(len(x), *part.shape[1:]) for part in words.flat()))
    with torch.no_grad():
        return model.denoised(x, torch.ones(len(x)), words, torch.zeros_like(x), torch.zeros_like(x))


def test_one_pass_is_nearer_to_the_data_than_the_teachers() -> None:
    """By Wasserstein-2 distance of normal distributions. From noise alone the teacher gives the mean of the data."""
    x = torch.randn(1000, 1, 2, 2, generator=torch.Generator().manual_seed(0))

    def distance(model: Diffusion) -> float:
        made = in_one_pass(model, x)
        return math.hypot(float(made.mean()) - MEAN, float(made.std()) - DEVIATION)

    for target in ("teacher", "data"):
        torch.manual_seed(0)
        model = of_exact(guidance=1.0, target=target, halvings=2, halve_every=100)
        assert distance(model) > 0.8, "it knows nothing yet"
        assert distance(trained(model, 600)) < 0.25 < 0.45 < distance(model.taught[0]), target


def test_with_k_0_the_student_is_the_guided_teacher() -> None:
    """Guidance distillation: one pass gives the estimate that takes the teacher two, at any noise level."""
    torch.manual_seed(0)
    model = trained(of_exact(guidance=2.0), 300)
    for t in (0.3, 0.6, 0.9):
        x, at = torch.linspace(-0.5, 1.5, 8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2), torch.full((8,), t)
        words, nothing = (model.prompted(["a"] * 8, [style] * 8) for style in (1, 0))
        shown = torch.zeros_like(x), torch.zeros_like(x)
        with torch.no_grad():
            wanted, avoided = (model.taught[0].denoised(x, at, said, *shown) for said in (words, nothing))
            found = model.denoised(x, at, words, *shown)
        torch.testing.assert_close(found, 2 * wanted - avoided, atol=0.1, rtol=0)
        assert (found - wanted).abs().mean() > 0.15, "guidance says something here"


PICTURE = (np.arange(4 * 64, dtype=np.float32) % 7 / 3.5 - 1).reshape(1, 4, 8, 8)
HOLE = (np.arange(64) % 8 > 3).astype(np.float32).reshape(1, 1, 8, 8)
SOURCES = {"fill": Source(PICTURE, HOLE), "instruction": Source(PICTURE, instruction=True)}
COND = Cond(["a red disc"], [1])


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(student(teacher()).eval(), Path(tmp_path_factory.mktemp("graphs")))


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "lcm"])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_exported_student_draws_what_torch_draws(exported: Exported, steps: int, sampler: str) -> None:
    model = student(teacher()).eval()
    options = {**defaults(model), "steps": steps, "sampler": sampler}
    plain = model.sample(COND, [3], steps=steps, sampler=sampler)
    for source in (None, *SOURCES.values()):
        want = model.sample(COND, [3], steps=steps, sampler=sampler, source=source)
        made = runner.draw(exported, arrays(model.wanted_and_avoided(COND, 0)), options, 3, Watch(), source)
        np.testing.assert_allclose(made.clip(-1, 1), want.numpy(), atol=2e-4)
        assert (source is None) == torch.equal(want, plain), "what is known counts"


def test_one_pass_a_step_and_what_it_cannot_do_is_said() -> None:
    model, passes = student(teacher()).eval(), []
    inner = model.network.forward
    model.network.forward = lambda x, *rest, **more: passes.append(len(x)) or inner(x, *rest, **more)
    model.sample(COND, [0], steps=4)
    assert passes == [1, 1, 1, 1], "one row a step: guidance would make it two"
    can = capabilities(defaults(model), model.edits, size=(8, 8))
    request = ImageRequest(prompt="a", negative_prompt="b", guidance_scale=7.0, num_inference_steps=2)
    adapted, said = adapt(request, can)
    assert {a.field for a in said} == {"negative_prompt", "guidance_scale"}
    assert (adapted.num_inference_steps, can.default_steps, can.image, can.mask) == (2, 4, True, True)
