"""The text encoder, and the weights that ship."""

import json
from importlib.resources import files

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import load

from imagewright.models.text import TextConfig, TextEncoder, load_pretrained
from imagewright.text import MAX_TOKENS, Tokenizer

ASSETS = files("imagewright") / "assets" / "text"
TEXTS = ["a red fox", "", "two strawbery cakes to the left of a blue car on a yellow background", "🦊"]


def tokens(texts):
    return [torch.as_tensor(part) for part in Tokenizer().encode(texts)[:3]]


@pytest.fixture(scope="module")
def shipped():
    return load_pretrained().eval()


@pytest.fixture(scope="module")
def pooled(shipped):
    def encode(*texts):
        with torch.inference_mode():
            return F.normalize(shipped(*tokens(texts))[1], dim=-1)

    return encode


def test_shapes(shipped):
    per_token, whole = shipped(*tokens(TEXTS))
    assert per_token.shape == (4, MAX_TOKENS, 256) and whole.shape == (4, 256)
    assert torch.isfinite(per_token).all() and torch.isfinite(whole).all()


def test_a_text_does_not_depend_on_its_company(shipped):
    _, together = shipped(*tokens(TEXTS))
    for row, text in enumerate(TEXTS):
        torch.testing.assert_close(shipped(*tokens([text]))[1][0], together[row], rtol=1e-4, atol=1e-5)


def test_masked_places_do_not_matter(shipped):
    ids, grams, mask = tokens(["a red fox"])
    wanted = shipped(ids, grams, mask)
    noise = torch.where(mask, ids, torch.randint_like(ids, 30000))
    got = shipped(noise, grams, mask)
    torch.testing.assert_close(got[1], wanted[1])
    torch.testing.assert_close(got[0][mask], wanted[0][mask])


def test_padding_may_be_trimmed(shipped):
    ids, grams, mask = tokens(["a red fox", "a frog above a car"])
    short = shipped(ids[:, :5], grams[:, :5], mask[:, :5])
    torch.testing.assert_close(short[1], shipped(ids, grams, mask)[1], rtol=1e-4, atol=1e-5)


def test_order_matters(pooled):
    a, b = pooled("a fox above a car", "a car above a fox")
    assert a @ b < 0.9999


def test_the_table_is_frozen_and_small():
    encoder = TextEncoder(TextConfig(width=64, depth=1))
    trainable = {name for name, _ in encoder.named_parameters()}
    assert not any(name.startswith("table") for name in trainable)
    assert encoder.table.rows.dtype == torch.int8
    assert encoder.table.rows.numel() + 4 * encoder.table.scale.numel() <= 4 * 2**20 + 2**18


def test_trainable_size():
    assert 2e6 < sum(p.numel() for p in TextEncoder().parameters()) < 3e6


def test_one_step_lowers_the_loss():
    torch.manual_seed(0)
    encoder = TextEncoder(TextConfig(width=64, depth=1))
    optimiser, target = torch.optim.Adam(encoder.parameters(), 1e-3), torch.randn(4, 64)
    losses = []
    for _ in range(20):
        loss = F.mse_loss(encoder(*tokens(TEXTS))[1], target)
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < 0.5 * losses[0]
    assert encoder.grams.weight[0].abs().max() == 0  # "no n-gram" stays nothing


def test_dequantisation_equals_numpy(shipped):
    stored = load((ASSETS / "text.safetensors").read_bytes())
    rows = stored["table.rows"].astype(np.float32) * stored["table.scale"].astype(np.float32)
    ids = torch.tensor([[0, 2417, 4419, 30521]])
    np.testing.assert_array_equal(shipped.table(ids)[0].numpy(), rows[ids[0].numpy()])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the exporter that needs no further package
def test_runs_the_same_in_onnx_runtime(shipped, tmp_path):
    path, names = tmp_path / "text.onnx", ["ids", "grams", "mask"]
    axes = {name: {0: "batch"} for name in names}
    inputs = tuple(tokens(TEXTS))
    torch.onnx.export(shipped, inputs, path, dynamo=False, input_names=names, dynamic_axes=axes)
    program = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    other = tokens(["a blue cat", "two dogs"])
    got = program.run(None, {name: part.numpy() for name, part in zip(names, other, strict=True)})
    for mine, theirs in zip(shipped(*other), got, strict=True):
        np.testing.assert_allclose(mine.detach().numpy(), theirs, rtol=1e-3, atol=1e-4)


def test_words_never_seen_in_a_caption_land_near_known_ones(pooled):
    puppy, dog, car = pooled("puppy", "dog", "car")
    assert puppy @ dog > puppy @ car + 0.2


@pytest.mark.parametrize(
    ("slip", "word"),
    [
        ("strawbery", "strawberry"),
        ("buterfly", "butterfly"),
        ("pinapple", "pineapple"),
        ("girafe", "giraffe"),
        ("bannana", "banana"),
    ],
)
def test_a_typo_lands_nearer_its_word_than_another(pooled, slip, word):
    others = ["bicycle", "angry face", "hammer", "castle", "rainbow", "dog"]
    typo, meant, *rest = pooled(slip, word, *others)
    assert typo @ meant > max(typo @ other for other in rest)


def test_a_noun_carries_its_own_colour(shipped):
    """Other things around a red car change it less than swapping the colours does."""

    def car(text):
        with torch.inference_mode():
            per_token = shipped(*tokens([text]))[0][0]
        return F.normalize(per_token[text.split().index("car")], dim=0)

    red = car("a red car above a blue fox")
    assert red @ car("a red car above a green tree") > red @ car("a blue car above a red fox")


def test_what_ships_is_small_and_holds_no_code():
    sizes = {path.name: len(path.read_bytes()) for path in ASSETS.iterdir()}
    assert set(sizes) == {"config.json", "text.safetensors", "tokenizer.json"}
    assert sizes["text.safetensors"] < 9e6 and sizes["tokenizer.json"] < 5e5


def test_the_record_says_where_it_comes_from():
    record = json.loads((ASSETS / "config.json").read_text("utf-8"))
    assert record["licence"] == "Apache-2.0"
    assert all(len(record["sources"][key]) == 64 for key in ("teacher_sha256", "phrases_sha256"))
    TextConfig(**record["model"])
