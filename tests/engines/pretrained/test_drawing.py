"""Progress, previews, an early stop, cancelling, wrapping, and pictures that would be black."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_verbs import make, picture, pixels

from imagewright.engines.pretrained import PretrainedEngine, describe, drawing, loading, samplers, sources
from imagewright.errors import ModelError
from imagewright.request import ImageRequest
from imagewright.watch import Watch

Get = Callable[[str], Path]


def request(folder: Path, **fields: Any) -> ImageRequest:
    return ImageRequest(**{"prompt": "a red fox", "model": str(folder), "seed": 3, "num_inference_steps": 3, **fields})


def test_every_step_is_told_once_and_in_order(tiny: Get, shared: PretrainedEngine) -> None:
    told: list[tuple[int, int]] = []
    shared.generate(request(tiny("sd"), n=2), Watch(lambda done, total: told.append((done, total))))
    assert told == [(i, 6) for i in range(1, 7)]


@pytest.mark.parametrize("family", ["sd", "sd3", "flux"])
def test_steps_are_shown_as_pictures_that_come_to_be_the_last(tiny: Get, shared: PretrainedEngine, family: str) -> None:
    seen: list[NDArray[Any]] = []

    def trace(kind: str, index: int, array: NDArray[Any], facts: Mapping[str, Any]) -> None:
        assert kind == "step" and "t" in facts
        seen.append(array)

    size = (96, 96) if family == "flux" else (64, 64)
    made = shared.generate(request(tiny(family), size=size), Watch(None, trace))
    assert [array.shape for array in seen] == [(4, size[1], size[0])] * 3
    last = ((seen[-1][:3].transpose(1, 2, 0) + 1) * 127.5).round()
    assert np.abs(last - pixels(made[0])).max() <= 1


def test_previews_are_of_the_first_picture_and_fewer_than_its_steps(tiny: Get, shared: PretrainedEngine) -> None:
    seen: dict[int, NDArray[Any]] = {}
    watch = Watch(preview=lambda index, image: seen.update({index: pixels(image)[..., :3].astype(int)}), previews=3)
    made = shared.generate(request(tiny("sd"), n=2), watch)
    assert list(seen) == [0, 1]
    assert np.abs(seen[0] - seen[1]).max() > 0 < np.abs(seen[1] - pixels(made[0])).max()
    assert np.array_equal(pixels(shared.generate(request(tiny("sd")))[0]), pixels(made[0]))


@pytest.mark.parametrize("stopped", [KeyboardInterrupt, RuntimeError])
def test_what_the_watcher_raises_ends_it_at_once_and_the_next_picture_is_as_ever(
    tiny: Get, shared: PretrainedEngine, stopped: type[BaseException]
) -> None:
    before = shared.generate(request(tiny("sd")))
    told = []

    def tell(done: int, total: int) -> None:
        told.append(done)
        if done == 2:
            raise stopped

    with pytest.raises(stopped):
        shared.generate(request(tiny("sd"), n=2), Watch(tell))
    assert told == [1, 2]
    assert np.array_equal(pixels(before[0]), pixels(shared.generate(request(tiny("sd")))[0]))


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_an_early_stop_gives_the_estimate_of_that_step(tiny: Get, shared: PretrainedEngine, family: str) -> None:
    seen: list[NDArray[Any]] = []
    told: list[int] = []
    watch = Watch(lambda done, total: told.append(done), lambda kind, index, array, facts: seen.append(array))
    size = (96, 96) if family == "flux" else (64, 64)
    made = shared.generate(request(tiny(family), size=size, num_inference_steps=4, stop=0.5), watch)
    assert told == [1, 2]
    last = ((seen[-1][:3].transpose(1, 2, 0) + 1) * 127.5).round()
    assert np.abs(last - pixels(made[0])).max() <= 1
    whole = shared.generate(request(tiny(family), size=size, num_inference_steps=4))
    assert not np.array_equal(pixels(made[0]), pixels(whole[0]))


def test_each_sampler_draws(tiny: Get, shared: PretrainedEngine) -> None:
    drawn = {
        name: pixels(make(shared, tiny("sd"), sampler=name, guidance_scale=1.0)[0]).tobytes()
        for name in samplers.NOISE_SAMPLERS
    }
    assert len(set(drawn.values())) > len(drawn) // 2
    for name in samplers.FLOW_SAMPLERS:
        assert make(shared, tiny("sd3"), sampler=name).records[0]["scheduler"] == name


def test_a_wrapped_decoder_knows_no_edge(tiny: Get) -> None:
    found = describe.describe(sources.locate(str(tiny("sd"))))
    pipe = loading.open_pipeline(found, torch.float32)
    z = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), drawing.wrapped(pipe, True):
        plain, rolled = (pipe.vae.decode(latents).sample for latents in (z, z.roll((5, 7), (2, 3))))
    assert torch.allclose(plain.roll((10, 14), (2, 3)), rolled, atol=1e-4)
    with torch.no_grad():
        assert not torch.allclose(pipe.vae.decode(z.roll(5, 2)).sample, plain.roll(10, 2), atol=1e-2)


def test_a_tiled_picture_meets_itself(tiny: Get, shared: PretrainedEngine) -> None:
    plain, tiled = (pixels(make(shared, tiny("sd"), tile=tile)[0]) for tile in (False, True))
    assert not np.array_equal(plain, tiled)
    assert np.array_equal(plain, pixels(make(shared, tiny("sd"))[0]))


def test_a_decoder_that_overflows_in_half_precision_works_again_in_full(tiny: Get) -> None:
    found = describe.describe(sources.locate(str(tiny("sd"))))
    pipe = loading.open_pipeline(found, torch.bfloat16)
    original, used = pipe.vae.decode, []

    def overflowing(z: torch.Tensor, *rest: Any, **named: Any) -> Any:
        used.append(z.dtype)
        image = original(z, *rest, **named)[0]
        return (image * float("nan") if z.dtype == torch.bfloat16 else image,)

    pipe.vae.decode = overflowing
    image = drawing.draw(pipe, {"prompt": "a fox", "num_inference_steps": 2, "width": 64, "height": 64}, 0, Watch())
    assert used == [torch.bfloat16, torch.float32]
    assert pixels(image).std() > 0 and pipe.vae.dtype == torch.bfloat16


def test_numbers_that_overflow_are_an_error_not_a_black_picture(tiny: Get) -> None:
    found = describe.describe(sources.locate(str(tiny("sd"))))
    pipe = loading.open_pipeline(found, torch.float32)
    with torch.no_grad():
        pipe.unet.conv_out.bias.fill_(float("inf"))
    with pytest.raises(ModelError, match="overflowed in float32"):
        drawing.draw(pipe, {"prompt": "a fox", "num_inference_steps": 2, "width": 64, "height": 64}, 0, Watch())
    assert "decode" not in vars(pipe.vae)


def test_a_little_strength_still_does_one_step_and_says_so(tiny: Get, shared: PretrainedEngine) -> None:
    made = make(shared, tiny("sd"), image=picture(), strength=0.1)
    assert [a.field for a in made.adjustments] == ["strength"]
