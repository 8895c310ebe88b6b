"""VAR on codes of several scales: it learns, sees only coarser scales, and draws alike as exported."""

from pathlib import Path

import numpy as np
import pytest
import torch
from exported import Exported, arrays
from tests_support import discs_source

from imagewright.data.batch import Batch
from imagewright.engines.runners import autoregressive
from imagewright.models.encoders import CodesConfig
from imagewright.models.technique import Cond, Words
from imagewright.models.tokens import given
from imagewright.models.var import VAR, VARConfig
from imagewright.models.vqvae import TokenizerConfig
from imagewright.source import Source
from imagewright.watch import Watch

TOKENIZER = TokenizerConfig(
    size=16, widths=(8, 16), encoder_blocks=(0, 0), decoder_blocks=(0, 0), quantiser="vq", codebook=20, latent=4,
    coarse_scales=(1, 2, 3),
)  # fmt: skip
CONFIG = VARConfig(CodesConfig(TOKENIZER), width=32, depth=2, heads=2, guidance=2.0, top_p=0.9)
N = 1 + 4 + 9 + 16


@pytest.fixture(scope="module")
def model() -> VAR:
    torch.manual_seed(0)
    model = VAR(CONFIG).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def words(model: VAR) -> Words:
    with torch.no_grad():
        return model.wanted_and_avoided(Cond(["a red disc"], [1]), 0)


def codes(rows: int) -> torch.Tensor:
    return torch.randint(20, (rows, N), generator=torch.Generator().manual_seed(0))


def test_it_learns_one_batch() -> None:
    torch.manual_seed(0)
    model, discs = VAR(CONFIG), discs_source(16).batch(0, 0, 0, 8, 8)
    batch = Batch(discs.draws, latents=codes(8), text=discs.text, style=discs.style)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    first = model.eval().loss(batch)
    assert first["nll"] == pytest.approx(np.log(20), rel=0.05)
    model.train()
    for step in range(60):
        draws = discs_source(16).batch(0, step, 0, 8, 8).draws
        losses = model.loss(Batch(draws, latents=batch.latents, text=batch.text, style=batch.style))
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    last = model.eval().loss(batch)
    assert last["nll"] < 0.6 * first["nll"] and last["loss"] == last["nll"]


def test_a_token_changes_nothing_on_its_own_and_coarser_scales(model: VAR, words: Words) -> None:
    one = codes(2)
    other = one.clone()
    other[:, 5] = (other[:, 5] + 1) % 20  # the first of the 3x3 scale
    with torch.no_grad():
        before, after = model.logits(one, words), model.logits(other, words)
    torch.testing.assert_close(before[:, : 1 + 4 + 9], after[:, : 1 + 4 + 9])
    assert not before[:, 1 + 4 + 9 :].allclose(after[:, 1 + 4 + 9 :])


def test_a_seed_is_one_picture_at_any_batch_size(model: VAR) -> None:
    both = model.sample(Cond(["a red disc", "a blue disc"], [1, 0]), [7, 8])
    alone = model.sample(Cond(["a blue disc"], [0]), [8])
    assert both.shape == (2, 4, 16, 16)
    torch.testing.assert_close(both[1:], alone)


PICTURE = discs_source(16).batch(0, 0, 0, 1, 1).pixels.numpy()
HOLE = np.zeros((1, 1, 16, 16), np.float32)
HOLE[..., 8:] = 1


def test_a_fill_keeps_known_cells_of_every_scale(model: VAR, words: Words) -> None:
    found = given(Source(PICTURE, HOLE), lambda pixels: codes(1)[0].numpy(), model.encoder.config.scales, 3)
    kept = found.keep
    sides = [kept[:1], kept[1:5].reshape(2, 2), kept[5:14].reshape(3, 3), kept[14:].reshape(4, 4)]
    assert [int(side.sum()) for side in sides] == [0, 2, 3, 8]  # a cell that is partly unknown is drawn anew
    drawn = model.regenerate(codes(1), torch.from_numpy(~kept)[None], words, 3)
    assert drawn[0, kept].equal(codes(1)[0, kept]) and not drawn.equal(codes(1))


def test_a_weak_change_draws_the_finest_scale_anew() -> None:
    found = given(Source(PICTURE, strength=0.5), lambda pixels: np.arange(N), [1, 2, 3, 4], 3)
    assert found.keep.tolist() == [True] * 15 + [False] * 15


def test_a_watch_sees_each_scale_and_where_the_words_were_read(model: VAR) -> None:
    told, shown = [], []
    watch = Watch(lambda *done: told.append(done), lambda *seen: shown.append(seen))
    model.sample(Cond(["a red disc"], [1]), [7], watch=watch)
    assert told == [(1, N), (5, N), (14, N), (30, N)]
    assert [kind for kind, *_ in shown][-2:] == ["token", "attention"]
    assert shown[-1][2].shape == (3, 4, 4) and shown[-1][3]["words"] == ["a", "red", "disc"]


def test_the_exported_model_draws_the_same_tokens(model: VAR, words: Words, tmp_path: Path) -> None:
    exported = Exported(model, tmp_path)
    for source in (Source(PICTURE, HOLE), Source(PICTURE, strength=0.5)):
        cond = Cond(["a red disc"], [1])
        options = model.chosen({})
        drawn = autoregressive.draw(exported, arrays(model.wanted_and_avoided(cond, 0)), options, 3, Watch(), source)
        np.testing.assert_allclose(drawn.clip(-1, 1), model.sample(cond, [3], source=source), atol=1e-4)
    nothing = torch.zeros(1, N, dtype=torch.long)
    for seed, guidance in ((3, 1.0), (4, 2.0)):
        expected = model.regenerate(nothing, nothing == 0, words, seed, guidance=guidance)
        options = {**model.chosen({}), "guidance": guidance}
        made = autoregressive.sample(exported, arrays(words), options, seed, lambda count, tokens: None)
        np.testing.assert_array_equal(made, expected[0])
        pixels = autoregressive.draw(exported, arrays(words), options, seed, Watch())
        np.testing.assert_allclose(pixels.clip(-1, 1), model.render(expected, words), atol=1e-4)


def test_var_wants_codes_of_several_scales() -> None:
    with pytest.raises(ValueError, match="GPT"):
        VAR(VARConfig(CodesConfig(TokenizerConfig(size=16, widths=(8, 16), encoder_blocks=(0, 0)))))
