"""Weights, variety and weird on encoded words, alike in torch and in numpy; and sampling that stops early."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from imagewright.engines.embedded import EmbeddedEngine, ExportedModel
from imagewright.engines.engine import steering_of
from imagewright.models.samplers import PROCESSES, SAMPLERS, noise_source, stopped
from imagewright.models.steering import Steering, turned
from imagewright.models.technique import Cond, Prompted
from imagewright.models.text import load_pretrained
from imagewright.request import ImageRequest
from imagewright.text import Tokenizer

PROMPT = "a red fox in the snow"
RED = (2, 5, 1.6)
ASSETS = Path(str(__import__("imagewright").__file__)).parent / "assets"


class Listening(Prompted):
    """The text encoder that ships, and nothing behind it."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.text = load_pretrained()
        self.config = type("Config", (), {"text": self.text.config})

    pixels = loss = sample = None  # type: ignore[assignment]


Listening.__abstractmethods__ = frozenset()  # type: ignore[attr-defined]


def numpy_words(model: ExportedModel, request: ImageRequest) -> dict[str, NDArray[np.float32]]:
    return model.steered(model.words(request)[0], request.prompt, steering_of(request, 0))


@pytest.fixture(scope="module")
def model() -> ExportedModel:
    return ExportedModel(ASSETS / "stickers-diffusion")


@pytest.mark.parametrize(
    "fields",
    [
        {"emphasis": (RED,)},
        {"variety": 0.7},
        {"weird": 0.4},
        {"emphasis": (RED, (6, 9, 0.5)), "variety": 1, "weird": 1},
    ],
)
def test_torch_and_numpy_steer_alike(model: ExportedModel, fields: dict[str, object]) -> None:
    request = ImageRequest(prompt=PROMPT, seed=3, **fields)  # type: ignore[arg-type]
    ours = numpy_words(model, request)
    cond = Cond([PROMPT], [0], [""], [steering_of(request, 0)])
    with torch.no_grad():
        theirs = Listening().wanted_and_avoided(cond, 0)
    mask = ours["text_mask"]
    np.testing.assert_array_equal(mask, theirs.mask.numpy())
    np.testing.assert_allclose(ours["text"][mask], theirs.tokens.numpy()[mask], atol=2e-3)
    np.testing.assert_allclose(ours["pooled"], theirs.pooled.numpy(), atol=2e-3)


def test_idle_steering_changes_no_bit(model: ExportedModel) -> None:
    request = ImageRequest(prompt=PROMPT, seed=3)
    assert steering_of(request, 0).idle
    words = model.words(request)[0]
    assert model.steered(words, PROMPT, steering_of(request, 0)) is words
    listening = Listening()
    plain = listening.wanted_and_avoided(Cond([PROMPT], [0]), 0)
    idle = listening.wanted_and_avoided(Cond([PROMPT], [0], None, [Steering(seed=3)]), 0)
    assert all(torch.equal(a, b) for a, b in zip(plain.flat(), idle.flat(), strict=True))


def test_a_weight_moves_its_tokens_alone(model: ExportedModel) -> None:
    plain = numpy_words(model, ImageRequest(prompt=PROMPT, seed=3))
    bold = numpy_words(model, ImageRequest(prompt=PROMPT, seed=3, emphasis=(RED,)))
    mean = plain["text"][0, :6].mean(0)
    expected = 1.6 * (mean + np.sqrt(1.6) * (plain["text"][0, 1] - mean))
    np.testing.assert_allclose(bold["text"][0, 1], expected, rtol=1e-4, atol=1e-5)
    others = [0, 2, 3, 4, 5]
    assert np.array_equal(bold["text"][0, others], plain["text"][0, others])
    assert not np.allclose(bold["pooled"][0], plain["pooled"][0])
    for name in ("text", "pooled"):
        assert np.array_equal(bold[name][1], plain[name][1])  # the avoided words stay


def test_variety_belongs_to_the_seed_and_weird_to_the_words(model: ExportedModel) -> None:
    def text(prompt: str, seed: int, **fields: float) -> NDArray[np.float32]:
        return numpy_words(model, ImageRequest(prompt=prompt, seed=seed, **fields))["text"][0]  # type: ignore[arg-type]

    assert not np.allclose(text(PROMPT, 1, variety=0.5), text(PROMPT, 2, variety=0.5))
    assert np.array_equal(text(PROMPT, 1, weird=0.5), text(PROMPT, 2, weird=0.5))
    change = text(PROMPT, 1, weird=0.5) - text(PROMPT, 1)
    other = text("a blue fox", 1, weird=0.5) - text("a blue fox", 1)
    assert not np.allclose(change[0], other[0], atol=0.1)


def test_turning_keeps_the_length_on_average() -> None:
    tokens = np.random.default_rng(0).standard_normal((1, 24, 256)).astype(np.float32) * 3
    mask = np.ones((1, 24), bool)
    for share in (0.0, 0.3, 0.6, 1.0):
        made = turned(tokens, mask, share, 5)
        assert np.sqrt(np.square(made).mean()) == pytest.approx(3, rel=0.03)
    assert np.array_equal(turned(tokens, mask, 0.0, 5), tokens)


def test_the_shipped_model_honours_all(model: ExportedModel) -> None:
    engine = EmbeddedEngine([ASSETS])
    plain = ImageRequest(prompt=PROMPT, seed=3, num_inference_steps=4)
    pictures = [engine.generate(plain)[0].tobytes()]
    for fields in ({"emphasis": (RED,)}, {"variety": 0.5}, {"weird": 0.5}, {"stop": 0.5}):
        result = engine.generate(ImageRequest(prompt=PROMPT, seed=3, num_inference_steps=4, **fields))  # type: ignore[arg-type]
        assert result.adjustments == ()
        assert result.records[0][next(iter(fields))] == next(iter(fields.values()))
        pictures.append(result[0].tobytes())
    assert len(set(pictures)) == 5


def test_a_batch_with_variety_is_its_pictures_alone(model: ExportedModel) -> None:
    request = ImageRequest(prompt=PROMPT, seed=3, variety=0.5, n=2, num_inference_steps=2)
    both, _ = model.generate(request)
    alone, _ = model.generate(ImageRequest(prompt=PROMPT, seed=4, variety=0.5, num_inference_steps=2))
    assert both[1].tobytes() == alone[0].tobytes()


# Tokens


@pytest.mark.parametrize(
    ("text", "emphasis", "expected"),
    [
        ("a red fox", [(2, 5, 2.0)], [1, 2, 1]),
        ("a 🦊 fox", [(2, 3, 2.0)], [1, 2, 2, 1]),  # read as fox face
        ("unbelievablewordish x", [(0, 19, 0.5)], [0.5, 0.5, 0.5, 0.5, 1]),
        ("a red fox", [], [1, 1, 1]),
    ],
)
def test_each_token_has_the_weight_of_its_words(
    text: str, emphasis: list[tuple[int, int, float]], expected: list[float]
) -> None:
    tokenizer = Tokenizer()
    weights = tokenizer.weights(text, emphasis)
    count = len(tokenizer.names(text))
    inside = [weight for weight in weights[:count] if weight != 1]
    assert len(weights) == 24
    assert set(weights[count:]) == {1}
    if text.startswith("un"):
        assert inside == [0.5] * (count - 1)
    else:
        assert weights[:count].tolist() == expected


@pytest.mark.parametrize(
    ("text", "limit", "rest"),
    [
        ("a red fox in the snow", 4, "the snow"),
        ("a red fox", 3, ""),
        ("a 🦊 in the snow", 3, "in the snow"),
        ("a 🦊 in the snow", 2, "🦊 in the snow"),  # half of it was read
        ("a tremendousword", 2, "tremendousword"),
        ("", 1, ""),
        ("\ud800 a b", 2, "b"),
    ],
)
def test_what_is_not_read_is_named(text: str, limit: int, rest: str) -> None:
    assert Tokenizer().unread(text, limit) == rest


def test_the_words_cut_off_are_said() -> None:
    result = EmbeddedEngine([ASSETS]).generate(
        ImageRequest(prompt="a red fox " * 8 + "under a tree", negative_prompt="x " * 30, num_inference_steps=1)
    )
    prompt, negative = result.adjustments
    assert (prompt.field, prompt.requested, prompt.used) == ("prompt", "27 tokens", "24 tokens")
    assert prompt.reason.endswith("not: under a tree")
    assert negative.field == "negative_prompt"


# Stopping early


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
@pytest.mark.parametrize("name", sorted(PROCESSES))
@pytest.mark.parametrize(("stop", "steps"), [(1.0, 8), (0.99, 8), (0.5, 4), (0.01, 1)])
def test_a_share_of_the_steps_is_made_and_their_last_estimate_is_there(
    sampler: str, name: str, stop: float, steps: int
) -> None:
    process, estimates, times_seen = PROCESSES[name](), [], []

    def denoise(x: np.ndarray, t: float) -> np.ndarray:
        estimates.append(np.tanh(x) + t)
        times_seen.append(t)
        return estimates[-1]

    noise, times = noise_source(1, (1, 2, 3, 3)), process.times(8)
    made = stopped(SAMPLERS[sampler], stop)(denoise, process.start(noise()), times, process, noise)
    assert min(times_seen) == times[steps - 1]
    if steps < 8:
        assert made is estimates[-1]
        assert times_seen[-1] == times[steps - 1]
