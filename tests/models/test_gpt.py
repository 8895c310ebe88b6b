"""GPT on picture tokens: it learns, sees only what came before, draws alike with and without its cache and as
exported, and fills."""

from pathlib import Path

import numpy as np
import pytest
import torch
from exported import Exported, arrays
from tests_support import discs_source

from imagewright.data.batch import Batch
from imagewright.engines.runners import autoregressive
from imagewright.models.encoders import CodesConfig
from imagewright.models.gpt import GPT, GPTConfig
from imagewright.models.technique import Cond, Words
from imagewright.models.tokens import Choice, Drawing, closed, given, uniforms
from imagewright.models.vqvae import TokenizerConfig
from imagewright.source import Source
from imagewright.watch import Watch

TOKENIZER = TokenizerConfig(
    size=16, widths=(8, 16), encoder_blocks=(0, 0), decoder_blocks=(0, 0), levels=(5, 4), latent=2
)
CONFIG = GPTConfig(CodesConfig(TOKENIZER), width=32, depth=2, heads=2, guidance=2.0, top_p=0.9)
COND = Cond(["a red disc", "a blue disc"], [1, 0], ["green", ""])


def stirred(model: torch.nn.Module) -> None:
    """No weight stays at zero, so that every part has a say."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(0)
    model = GPT(CONFIG).eval()
    stirred(model)
    return model


@pytest.fixture(scope="module")
def words(model: GPT) -> Words:
    with torch.no_grad():
        return model.wanted_and_avoided(COND, 0)


def codes(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(20, (rows, 4, 4), generator=torch.Generator().manual_seed(seed))


def coded(step: int, rows: int = 8) -> Batch:
    """Discs, by words and codes."""
    batch = discs_source(16).batch(0, step, 0, rows, rows)
    return Batch(batch.draws, latents=codes(rows), text=batch.text, style=batch.style)


def test_it_learns_one_batch() -> None:
    torch.manual_seed(0)
    model = GPT(CONFIG)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    batch = coded(0)
    first = model.eval().loss(batch)
    assert first["nll"] == pytest.approx(np.log(20), rel=0.05)
    model.train()
    for step in range(60):
        losses = model.loss(Batch(coded(step).draws, latents=batch.latents, text=batch.text, style=batch.style))
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    last = model.eval().loss(batch)
    assert last["nll"] < 0.5 * first["nll"] and last["right"] > 0.6


def test_held_out_rows_give_the_plain_likelihood(model: GPT) -> None:
    with torch.no_grad():
        first, second = model.loss(coded(0)), model.loss(coded(0))
    assert first["loss"] == first["nll"] == second["loss"]


def test_pixels_and_cached_codes_give_the_same_loss(model: GPT) -> None:
    batch = discs_source(16).batch(0, 0, 0, 4, 4)
    cached = Batch(batch.draws, latents=model.encoder.encode(batch.pixels), text=batch.text, style=batch.style)
    with torch.no_grad():
        torch.testing.assert_close(model.loss(batch)["loss"], model.loss(cached)["loss"])


def test_a_token_changes_nothing_before_it(model: GPT, words: Words) -> None:
    known, none = codes(2).flatten(1), torch.zeros(2, 16)
    other = known.clone()
    other[:, 9] = (other[:, 9] + 1) % 20
    with torch.no_grad():
        before, after = (model.logits(x[:, :-1], words, known, none) for x in (known, other))
    torch.testing.assert_close(before[:, :10], after[:, :10])
    assert not before[:, 10].allclose(after[:, 10])


def test_what_is_known_is_seen_from_before_it_but_nothing_else_is(model: GPT, words: Words) -> None:
    known, mask = codes(2).flatten(1), torch.zeros(2, 16)
    mask[:, 10] = 1
    with torch.no_grad():
        plain, looking = (model.logits(known[:, :-1], words, known, m) for m in (0 * mask, mask))
        unseen = known.clone()
        unseen[:, 3] = (unseen[:, 3] + 1) % 20  # not known
        same = model.logits(known[:, :-1], words, unseen, mask)
    assert not plain[:, 9].allclose(looking[:, 9])
    torch.testing.assert_close(looking, same)


def test_words_and_style_have_a_say(model: GPT, words: Words) -> None:
    known, none = codes(1).flatten(1).expand(2, -1), torch.zeros(2, 16)
    with torch.no_grad():
        wanted, avoided = model.logits(known[:, :-1], words, known, none)
    assert not wanted.allclose(avoided)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_cache_changes_no_token(model: GPT, words: Words, guidance: float) -> None:
    known, keep = codes(1).flatten(1), torch.zeros(1, 16, dtype=torch.bool)
    keep[:, 5:7] = True
    kept = {5: int(known[0, 5]), 6: int(known[0, 6])}
    drawing = Drawing(uniforms(3, 16), Choice(guidance, top_p=0.9), kept, lambda count, tokens: None)
    with torch.no_grad():
        rows = words[: drawing.choice.rows]
        fast, slow = model.draw(drawing, rows, known, keep), model.draw_slow(drawing, rows, known, keep)
    np.testing.assert_array_equal(fast, slow)
    assert len(set(fast)) > 4


def test_a_step_gives_the_logits_of_the_whole(model: GPT, words: Words) -> None:
    known, mask = codes(2).flatten(1), torch.zeros(2, 16)
    mask[:, 12] = 1
    with torch.no_grad():
        whole = model.logits(known[:, :-1], words, known, mask)
        cache, modulation, ahead = model.prefix(words.tokens, words.pooled, words.style, known, mask)
        previous = torch.full((2,), model.count)
        for i in range(16):
            position = torch.full((2,), i)
            logits, new = model.step(previous, position, cache, words.mask, modulation, ahead[:, i])
            torch.testing.assert_close(logits, whole[:, i], atol=1e-4, rtol=1e-4)
            cache[..., words.mask.shape[1] + i, :] = new
            previous = known[:, i]


def test_a_seed_is_one_picture_at_any_batch_size(model: GPT) -> None:
    both = model.sample(COND, [7, 8])
    alone = model.sample(Cond(COND.prompts[1:], COND.style[1:], COND.negative[1:]), [8])
    assert both.shape == (2, 4, 16, 16) and both.abs().max() <= 1
    torch.testing.assert_close(both[1:], alone)
    assert not both[0].allclose(both[1])


def test_regenerating_keeps_what_is_not_masked(model: GPT, words: Words) -> None:
    given, mask = codes(1), torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[:, 1:3, 1:4] = True
    drawn = [model.regenerate(given, mask, words, seed) for seed in range(3)]
    for made in drawn:
        assert made.shape == given.shape and made[~mask].equal(given[~mask])
    assert not drawn[0].equal(drawn[1]) or not drawn[0].equal(drawn[2])


HOLE = np.zeros((1, 1, 16, 16), np.float32)
HOLE[:, :, 6:16, 8:16] = 1  # cuts through the second row of 4 x 4 cells


def test_a_fill_keeps_the_known_cells(model: GPT) -> None:
    picture = discs_source(16).batch(0, 0, 0, 1, 1).pixels
    assert picture is not None
    kept = given(
        Source(picture.numpy(), HOLE), lambda x: model.encoder.encode(torch.from_numpy(x)).numpy().ravel(), [4], 5
    )
    assert kept.keep.reshape(4, 4).tolist() == [[True] * 4] + [[True, True, False, False]] * 3
    cond = Cond(["a red disc"], [1])
    everything = model.sample(cond, [5], source=Source(picture.numpy(), np.zeros_like(HOLE)))
    torch.testing.assert_close(everything, model.encoder.decode(model.encoder.encode(picture)).clamp(-1, 1))
    filled = [model.sample(cond, [seed], source=Source(picture.numpy(), HOLE)) for seed in (5, 6)]
    assert not filled[0].allclose(filled[1])


def test_cells_over_the_edge_of_a_hole_are_encoded_with_what_stays() -> None:
    picture, asked = np.full((1, 4, 16, 16), -1, np.float32), []

    def encode(pixels: np.ndarray) -> np.ndarray:
        asked.append(pixels)
        return np.full(16, 9)

    found = closed(np.arange(16), Source(picture, HOLE), encode, lambda codes: np.full((1, 4, 16, 16), 2.0), 4)
    assert found.reshape(4, 4).tolist() == [[0, 1, 2, 3], [4, 5, 9, 9], [8, 9, 10, 11], [12, 13, 14, 15]]
    np.testing.assert_array_equal(asked[0][0, 0], np.where(HOLE[0, 0] > 0, 1, -1))


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_strength_is_the_share_of_codes_drawn_anew(strength: float) -> None:
    source = Source(np.zeros((1, 4, 16, 16), np.float32), strength=strength)
    one, other = (given(source, lambda pixels: np.arange(16), [4], seed) for seed in (1, 2))
    assert one.keep.sum() == other.keep.sum() == 16 - 16 * strength
    assert (one.keep == other.keep).all() == (strength in (0, 1))
    assert one.kept == {i: i for i in one.keep.nonzero()[0]}
    hole = given(Source(source.pixels, HOLE, strength), lambda pixels: np.arange(16), [4], 1)
    assert (hole.keep >= one.keep).all() and hole.keep[:6].all()


def test_codes_come_back_and_mix_one_after_the_other(model: GPT, words: Words) -> None:
    a, b = codes(1), (codes(1) + 1) % 20
    torch.testing.assert_close(model.render(a, words), model.encoder.decode(a).clamp(-1, 1))
    assert model.mix(a, b, 0.0).equal(a) and model.mix(a, b, 1.0).equal(b)
    early, late = model.mix(a, b, 0.25) == b, model.mix(a, b, 0.75) == b
    assert early.sum() == 4 and late.sum() == 12 and (late | ~early).all()
    picture = discs_source(16).batch(0, 0, 0, 1, 1).pixels
    assert model.invert(picture, words).equal(model.encoder.encode(picture))


def test_a_watch_sees_the_picture_grow_and_where_the_words_were_read(model: GPT) -> None:
    shown: list[tuple[str, int, np.ndarray, dict]] = []
    model.sample(Cond(["a red disc"], [1]), [7], watch=Watch(None, lambda *seen: shown.append(seen)))
    assert [(kind, index, array.shape) for kind, index, array, _ in shown] == [
        ("token", 8, (4, 16, 16)),
        ("token", 16, (4, 16, 16)),
        ("attention", 16, (3, 4, 4)),
    ]
    maps, facts = shown[2][2:]
    assert facts["words"] == ["a", "red", "disc"]
    assert maps.min() > 0 and (maps.sum(0) < 1).all()
    picture = model.sample(Cond(["a red disc"], [1]), [7])
    np.testing.assert_allclose(shown[1][2].clip(-1, 1), picture[0], atol=1e-5)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_exported_model_draws_the_same_tokens(model: GPT, tmp_path: Path, guidance: float) -> None:
    exported = Exported(model, tmp_path)
    options = {**model.chosen({}), "guidance": guidance}
    picture = discs_source(16).batch(0, 0, 0, 1, 1).pixels.numpy()
    for source in (Source(picture, HOLE), Source(picture, strength=0.5), Source(picture, HOLE, strength=0.5)):
        expected = model.sample(Cond(["a red disc"], [1], ["green"]), [3], source=source, guidance=guidance)
        with torch.no_grad():
            words = arrays(model.wanted_and_avoided(COND, 0))
        pixels = autoregressive.draw(exported, words, options, 3, Watch(), source)
        np.testing.assert_allclose(pixels.clip(-1, 1), expected, atol=1e-4)
    for row, seed in ((0, 3), (1, 4)):
        with torch.no_grad():
            words = model.wanted_and_avoided(COND, row)
        nothing = torch.zeros(1, 4, 4, dtype=torch.long)
        expected = model.regenerate(nothing, nothing == 0, words, seed, guidance=guidance)
        made = autoregressive.sample(exported, arrays(words), options, seed, lambda count, tokens: None)
        np.testing.assert_array_equal(made, expected.flatten())
        pixels = autoregressive.draw(exported, arrays(words), options, seed, Watch())
        np.testing.assert_allclose(pixels.clip(-1, 1), model.render(expected, words), atol=1e-4)
    batch = discs_source(16).batch(0, 0, 0, 3, 3).pixels
    np.testing.assert_array_equal(exported.run("encoder", pixels=batch.numpy())[0], model.encoder.encode(batch))


def test_gpt_wants_codes_of_one_scale() -> None:
    several = TokenizerConfig(size=16, widths=(8, 16), encoder_blocks=(0, 0), decoder_blocks=(0, 0), coarse_scales=(1,))
    with pytest.raises(ValueError, match="VAR"):
        GPT(GPTConfig(CodesConfig(several), width=32, depth=1, heads=2))
