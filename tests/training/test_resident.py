"""Batches that are gathered on the device: the pictures of the ordinary feed, and captions drawn as it draws them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_recipes import draw_folder

from imagewright.data.loader import CaptionedFolder
from imagewright.text import Tokenizer
from imagewright.training.clock import FORECAST, Clock
from imagewright.training.config import TrainConfig
from imagewright.training.resident import POOL, ResidentSource, pool_of
from imagewright.training.sources import PixelSource

ROWS = 16


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> PixelSource:
    """Shapes with a style, tags and edits, so that captions vary; every third is an edit of the first."""
    path = draw_folder(tmp_path_factory.mktemp("set") / "data", 2)
    folder = CaptionedFolder(path)
    for i, record in enumerate(folder.records):
        record |= {"kind": "sticker", "style": "noto", "tags": ["round", "bright", "plain"], "split": "train"}
        if i % 3 == 2:
            record |= {"kind": "edit", "before": folder.records[0]["file_name"]}
            record |= {"edit": {"instruction": "make it " + record["text"].split()[1]}}
    folder._edits = np.arange(2, len(folder), 3)
    folder.before[2::3] = 0
    return PixelSource(folder, 32, Tokenizer(), edits_share=0.3)


def spelled(ids: torch.Tensor, mask: torch.Tensor) -> list[tuple[int, ...]]:
    return [tuple(row[seen].tolist()) for row, seen in zip(ids, mask, strict=True)]


def test_the_pictures_are_those_of_the_ordinary_feed(source: PixelSource) -> None:
    resident = ResidentSource(source, torch.device("cpu"))
    for step in (0, 7):
        ours, theirs = (feed.batch(3, step, 4, ROWS, ROWS) for feed in (resident, source))
        for name in ("pixels", "before", "edited", "style"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
        assert ours.step == step and len(ours) == ROWS - 4
        again = resident.batch(3, step, 4, ROWS, ROWS)
        assert torch.equal(again.text.ids, ours.text.ids), "a pure function of the step"
        assert torch.equal(again.draws.randn(3), ours.draws.randn(3))


def test_captions_are_drawn_as_the_ordinary_feed_draws_them(source: PixelSource) -> None:
    resident = ResidentSource(source, torch.device("cpu"))
    counts: list[Counter[tuple[int, ...]]] = []
    for feed in (resident, source):
        batches = [feed.batch(5, step, 0, 512, 512) for step in range(6)]
        counts.append(Counter(text for b in batches for text in spelled(b.text.ids, b.text.mask)))  # type: ignore[union-attr]
    shapes = {b.text.ids.shape for b in (resident.batch(5, step, 0, 512, 512) for step in range(3))}  # type: ignore[union-attr]
    assert len(shapes) == 1, "static shapes"
    total = 6 * 512
    by_length = [
        Counter({n: sum(c for t, c in count.items() if len(t) == n) for n in range(1, 25)}) for count in counts
    ]
    apart = sum(abs(by_length[0][n] - by_length[1][n]) for n in range(1, 25)) / (2 * total)
    assert apart < 0.06, "the lengths of captions are distributed alike"
    frequent = {text for text, count in counts[1].items() if count > 0.01 * total}
    assert frequent and frequent <= counts[0].keys()


def test_grams_belong_to_their_texts_and_the_pool_is_kept(source: PixelSource) -> None:
    resident = ResidentSource(source, torch.device("cpu"))
    batch, path = resident.batch(0, 0, 0, ROWS, ROWS), source.folder.path / ".cache"
    assert batch.text is not None and len(list(path.glob(f"*-captions-{POOL}.safetensors"))) == 1
    texts = {tuple(i[m].tolist()): g for i, m, g in zip(batch.text.ids, batch.text.mask, batch.text.grams, strict=True)}
    told = source.folder.captions(0, 0, np.arange(len(source.folder)))
    ids, grams, mask, _ = source.tokenizer.encode([t for t in told for t in (t, t.lower())])
    found = [
        (texts[key], g) for i, g, m in zip(ids, grams, mask, strict=True) if (key := tuple(i[m].tolist())) in texts
    ]
    assert found and all(np.array_equal(ours[: len(g)].numpy(), g[: len(ours)]) for ours, g in found)


@pytest.mark.parametrize("condition", ["class", "none"])
def test_without_drawn_captions_each_picture_has_one(source: PixelSource, condition: str) -> None:
    plain = PixelSource(source.folder, 32, Tokenizer(), condition=condition)
    assert pool_of(plain)["choice"].shape == (len(source.folder), 1)
    ours, theirs = (feed.batch(0, 0, 0, ROWS, ROWS) for feed in (ResidentSource(plain, torch.device("cpu")), plain))
    assert spelled(ours.text.ids, ours.text.mask) == spelled(theirs.text.ids, theirs.text.mask)  # type: ignore[union-attr]


def test_a_cooldown_ends_with_the_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    config = TrainConfig(steps=100_000, minutes=10, schedule="wsd", cooldown=0.3, fit=True)
    clock, step, end = Clock(config), 0, 0
    while not end:
        now[0] += 2.0 if step < FORECAST / 2 else 0.1  # compiling is slow and tells nothing
        step += 1
        end = clock.end(step) if now[0] < 590 else -1
    left = 600 - now[0]
    assert left <= 180 and 0.85 * left < (end - step) * 0.1 <= left
    by_itself, ends = Clock(replace(config, steps=400)), []
    for n in range(1, 401):
        now[0] += 0.1
        ends.append(by_itself.end(n))
    assert ends == [0] * 279 + [400] * 121, "where the steps are over before the minutes are"
