"""The text encoder, and the weights that ship."""

import json
from importlib.resources import files

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F

from imagewright import text_encoder
from imagewright.models.text import TextConfig, TextEncoder, load_pretrained, packed_state
from imagewright.text import MAX_TOKENS, Tokenizer
from imagewright.text_encoder import NumpyTextEncoder

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


def test_numpy_computes_what_torch_computes(shipped):
    ids, grams, mask, _ = Tokenizer().encode(TEXTS)
    made = NumpyTextEncoder(text_encoder.shipped())(ids, grams, mask)
    with torch.inference_mode():
        want = [part.numpy() for part in shipped(*map(torch.from_numpy, (ids, grams, mask)))]
    np.testing.assert_allclose(made[0][mask], want[0][mask], atol=2e-5)
    np.testing.assert_allclose(made[1], want[1], atol=2e-5)


def test_a_file_keeps_rows_of_four_bits_exactly(tmp_path):
    """What was read once can be written and read again by whoever trains on, without a further loss."""
    packed = text_encoder.shipped()
    text_encoder.write_packed(packed, tmp_path / "text.safetensors")
    again = text_encoder.read_packed(tmp_path / "text.safetensors")
    nibbles = text_encoder._in_nibbles(packed["table.rows"])
    np.testing.assert_array_equal(again["table.rows"], text_encoder._from_nibbles(*nibbles.values()))
    largest = np.abs(packed["table.rows"].astype(int) - again["table.rows"]).max()
    assert largest <= 9  # half of the largest factor


def test_every_row_of_eight_bits_survives_in_four(tmp_path):
    rows = np.random.default_rng(0).integers(-127, 128, (64, 128)).astype(np.int8)
    rows[0], rows[1] = 0, 127
    found = text_encoder._from_nibbles(*text_encoder._in_nibbles(rows).values())
    assert np.abs(rows.astype(int) - found).max() <= 9 and (found[0] == 0).all() and (found[1] == 126).all()


def test_packing_keeps_the_matrices(shipped):
    state = text_encoder.unpack(packed_state(shipped))
    for name, tensor in shipped.state_dict().items():
        want = tensor.float().numpy()
        assert np.linalg.norm(state[name] - want) <= 0.01 * np.linalg.norm(want), name


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
    assert sizes["text.safetensors"] < 4.5e6 and sizes["tokenizer.json"] < 5e5


def test_the_record_says_where_it_comes_from():
    record = json.loads((ASSETS / "config.json").read_text("utf-8"))
    assert record["licence"] == "Apache-2.0"
    assert all(len(record["sources"][key]) == 64 for key in ("teacher_sha256", "phrases_sha256"))
    TextConfig(**record["model"])
