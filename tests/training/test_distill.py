"""Distilling the text encoder: the phrases, their roles, the table, the layout of the targets."""

import json
import random

import pytest
import torch
from safetensors.torch import save

from imagewright.data.splits import unseen_pair
from imagewright.models.text import TextConfig, TextEncoder
from imagewright.text import Tokenizer
from imagewright.training.distill import (
    DistilConfig,
    Student,
    Teacher,
    distil_loss,
    noun_roles,
    quantise,
    teach,
    train,
    word_table,
    write_tokenizer,
)
from imagewright.training.phrases import COLOURS, RELATIONS, Concept, Phrase, make_phrases, misspell

CONCEPTS = [
    Concept(hexcode, label, tags, 3, ())
    for hexcode, label, tags in (
        ("1F98A", "fox", ("animal", "face")),
        ("1F332", "evergreen tree", ("forest",)),
        ("1F40C", "snail", ("slow", "garden")),
        ("1F511", "key", ("password",)),
    )
]


@pytest.fixture(scope="module")
def teacher():
    """A sentence encoder with one narrow layer of random weights."""
    torch.manual_seed(0)
    width, inner = 16, 32
    names = {"embeddings.word_embeddings": (30522, width), "embeddings.token_type_embeddings": (2, width)}
    names["embeddings.position_embeddings"] = (64, width)
    weights = {f"{name}.weight": torch.randn(shape) for name, shape in names.items()}
    layer = "encoder.layer.0."
    for part in ("attention.self.query", "attention.self.key", "attention.self.value"):
        weights |= {
            f"{layer}{part}.weight": torch.randn(width, width),
            f"{layer}{part}.bias": torch.zeros(width),
        }
    for part, shape in (
        ("attention.output.dense", (width, width)),
        ("intermediate.dense", (inner, width)),
        ("output.dense", (width, inner)),
    ):
        weights |= {f"{layer}{part}.weight": torch.randn(shape), f"{layer}{part}.bias": torch.zeros(shape[0])}
    for norm in ("embeddings.LayerNorm", f"{layer}attention.output.LayerNorm", f"{layer}output.LayerNorm"):
        weights |= {f"{norm}.weight": torch.ones(width), f"{norm}.bias": torch.zeros(width)}
    config = {"num_attention_heads": 2, "num_hidden_layers": 1, "layer_norm_eps": 1e-12, "hidden_size": width}
    return Teacher({"model.safetensors": save(weights), "config.json": json.dumps(config).encode()})


def test_phrases_are_a_function_of_the_seed():
    make = [make_phrases(CONCEPTS, ["red", "house"], seed, 40) for seed in (1, 1, 2)]
    assert make[0] == make[1] != make[2]
    texts = [phrase.text for phrase in make[0]]
    assert len(texts) == len(set(texts)) and {"fox", "evergreen tree", "slow", "house"} <= set(texts)


def test_scenes_never_pair_what_image_models_may_not_see():
    many = [Concept(f"{i:X}", f"thing{i}", (), 3, ()) for i in range(100)]
    scenes = [p.text for p in make_phrases(many, ["red"], 0, 3000) if p.roles]
    pairs = [{w.rstrip("s") for w in text.split() if w.startswith("thing")} for text in scenes]
    both = [sorted(pair) for pair in pairs if len(pair) == 2]
    assert len(both) > 1000
    assert not any(unseen_pair(f"{int(a[5:]):X}", f"{int(b[5:]):X}") for a, b in both)


def test_roles_lie_on_the_tokens_of_their_nouns():
    blue, above = COLOURS.index("blue") + 1, 2 * RELATIONS.index("above") + 1
    roles = (None, None, (blue, 0, above), None, None, (0, 1, above + 1), (0, 1, above + 1))
    phrases = [Phrase("key"), Phrase("a blue strawbery above two evergreen trees", roles)]
    tokenizer = Tokenizer()
    length = torch.as_tensor(tokenizer.encode([phrase.text for phrase in phrases])[2]).sum(1)
    laid = noun_roles(tokenizer, phrases, torch.tensor([0, *length.cumsum(0).tolist()]))
    colours = laid[:, 0].tolist()  # key | a blue straw ##bery above two evergreen trees
    assert colours == [-1, -1, -1, blue, blue, -1, -1, 0, 0]
    assert laid[-1].tolist() == [0, 1, above + 1]


def test_misspelling_changes_one_long_word():
    rng = random.Random(0)
    assert misspell("a red cat", rng) == "a red cat"
    slips = {misspell("a purple cat", rng) for _ in range(200)}
    assert len(slips) > 30 and all(slip.startswith("a p") and slip.endswith(" cat") for slip in slips)


def test_quantising_loses_little():
    table = torch.randn(50, 128) * torch.logspace(-2, 2, 50)[:, None]
    rows, scale = quantise(table)
    assert rows.dtype == torch.int8 and torch.equal(scale, scale.half().float())
    assert ((rows * scale - table).abs() <= 0.51 * scale).all()


def test_the_table_keeps_the_strongest_axes():
    torch.manual_seed(0)
    axes = torch.linalg.qr(torch.randn(48, 48))[0][:4]
    rows, scale = word_table(torch.randn(4000, 4) @ axes, dim=4)
    assert (rows[:999] == 0).all()
    spread = (rows * scale)[1996:].square().mean(0)
    assert (spread[:-1] >= spread[1:] * 0.9).all() and spread.sum() == pytest.approx(4, rel=0.01)


def test_teaching_in_batches_equals_one_by_one(teacher):
    texts = ["fox", "a red fox above two evergreen trees", "", "snail key"]
    together = teach(teacher, Tokenizer(), texts, batch=3)
    for row, text in enumerate(texts):
        alone = teach(teacher, Tokenizer(), [text])
        length = int(alone.first[1])
        torch.testing.assert_close(together.sentences[row], alone.sentences[0], rtol=0.05, atol=0.02)
        places = together.places(torch.tensor([row]), length)[0]
        torch.testing.assert_close(together.tokens[places], alone.tokens, rtol=0.05, atol=0.05)


def test_training_lowers_the_loss(teacher):
    torch.manual_seed(0)
    phrases = make_phrases(CONCEPTS, ["red", "house"], 0, 60)
    targets = teach(teacher, Tokenizer(), [phrase.text for phrase in phrases])
    encoder = TextEncoder(TextConfig(width=32, depth=1, heads=2))
    table = encoder.table.rows.clone()
    student = train(encoder, phrases, targets, DistilConfig(steps=40, batch=16, misspelt=0.1, lr=5e-3))
    ids, grams, mask, _ = (torch.as_tensor(part) for part in Tokenizer().encode([p.text for p in phrases]))
    places = targets.places(torch.arange(len(phrases)), ids.shape[1])
    roles = noun_roles(Tokenizer(), phrases, targets.first)
    wanted = targets.sentences.float(), targets.tokens[places].float(), roles[places]
    with torch.no_grad():
        trained = distil_loss(student(ids, grams, mask), wanted, mask)
        fresh = distil_loss(Student(TextEncoder(encoder.config), teacher.width)(ids, grams, mask), wanted, mask)
    assert trained < 0.7 * fresh
    assert torch.equal(encoder.table.rows, table)


def test_the_written_tokenizer_has_no_special_tokens(tmp_path):
    rules = {"model": {"type": "WordPiece"}, "truncation": {}, "padding": {}, "added_tokens": [{"id": 0}]}
    write_tokenizer(json.dumps(rules).encode(), tmp_path / "tokenizer.json")
    written = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    assert written["added_tokens"] == [] and written["padding"] is None and written["truncation"] is None
