"""Makes the shared text encoder from a sentence encoder (all-MiniLM-L6-v2, Apache-2.0): a build-time tool.

1. Word table, as in model2vec: each word piece alone through the teacher, PCA, frequency weights, int8 rows.
2. Layers and n-grams: a linear readout of `pooled` follows the teacher's sentence (cosine), `pooled` itself
   its similarities within the batch (softmax), a readout of each token the teacher's token (cosine); a
   misspelt phrase follows the phrase spelt right. In scenes each noun's token also tells its colour, number
   and place (cross-entropy), which the teacher's vectors hardly hold and a picture needs.

What ships needs neither the teacher nor its library.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import re
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import Tensor, nn

from imagewright.models.text import TextConfig, TextEncoder, packed_state
from imagewright.text import Tokenizer
from imagewright.text_encoder import read_packed, unpack, write_packed
from imagewright.training.phrases import (
    QUERIES,
    ROLE_SIZES,
    Phrase,
    is_held_out,
    make_phrases,
    misspell,
    read_concepts,
)

FIRST_CHARACTER, FIRST_WORD = (
    999,
    1996,
)  # ids of BERT's vocabulary: unused places, then characters, then words
CLS, SEP = 101, 102
SIF = 1e-3  # smooth inverse frequency: a word of probability p weighs SIF / (SIF + p)

Weights = dict[str, Tensor]


# ---------------------------------------------------------------- the teacher


class Teacher:
    """A BERT sentence encoder (mean pooling, unit length) from the bytes of `read_teacher`."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.weights, config = load(files["model.safetensors"]), json.loads(files["config.json"])
        self.heads, self.depth = config["num_attention_heads"], config["num_hidden_layers"]
        self.eps, self.width = config["layer_norm_eps"], config["hidden_size"]

    @torch.inference_mode()
    def __call__(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """ids (B, L) with [CLS] and [SEP], mask (B, L) bool, to tokens (B, L, D) and sentences (B, D)."""
        w = self.weights
        x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.token_type_embeddings.weight"][0]
        x = self._norm(x + w["embeddings.position_embeddings.weight"][: ids.shape[1]], "embeddings.LayerNorm")
        for layer in range(self.depth):
            x = self._layer(x, mask, f"encoder.layer.{layer}.")
        weight = mask[..., None].float()
        return x, F.normalize((x * weight).sum(1) / weight.sum(1), dim=-1)

    def _layer(self, x: Tensor, mask: Tensor, name: str) -> Tensor:
        split = (*x.shape[:2], self.heads, self.width // self.heads)
        q, k, v = (
            self._linear(x, f"{name}attention.self.{part}").view(split).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None]).transpose(1, 2).flatten(2)
        x = self._norm(x + self._linear(y, f"{name}attention.output.dense"), f"{name}attention.output.LayerNorm")
        y = self._linear(F.gelu(self._linear(x, f"{name}intermediate.dense")), f"{name}output.dense")
        return self._norm(x + y, f"{name}output.LayerNorm")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.layer_norm(x.float(), (self.width,), weight, bias, self.eps)


def read_teacher(source: str) -> dict[str, bytes]:
    """The files config.json, tokenizer.json and model.safetensors of a folder, a wheel or a hub id."""
    names = ("config.json", "tokenizer.json", "model.safetensors")
    path = Path(source)
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            (folder,) = {str(Path(n).parent) for n in wheel.namelist() if n.endswith("/" + names[-1])}
            return {name: wheel.read(f"{folder}/{name}") for name in names}
    if not path.is_dir():
        from huggingface_hub import snapshot_download

        path = Path(snapshot_download(source, allow_patterns=list(names)))
    return {name: (path / name).read_bytes() for name in names}


# ---------------------------------------------------------------- the word table


def word_vectors(teacher: Teacher, vocab: int) -> Tensor:
    """Each word piece alone through the teacher: (vocab, D), unit length."""
    parts = []
    for ids in torch.split(torch.arange(vocab), 1024):
        rows = F.pad(ids[:, None], (1, 1))
        rows[:, 0], rows[:, 2] = CLS, SEP
        parts.append(teacher(rows, torch.ones_like(rows, dtype=torch.bool))[1])
    return torch.cat(parts)


def word_table(vectors: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """PCA and frequency weights: int8 rows (vocab, dim) and scales (vocab, 1); unused places are zero.

    The vocabulary is in order of frequency, so Zipf's law gives each piece its probability. The square root
    of the usual weight is taken, because a picture's text needs its "two" and "on".
    """
    centred = vectors - vectors[FIRST_WORD:].mean(0)
    words = centred[FIRST_WORD:].double()
    axes = torch.linalg.eigh(words.T @ words).eigenvectors.float()  # (D, D), weakest first
    rank = (torch.arange(len(vectors)) - FIRST_WORD + 1).clamp(min=1)
    probability = 1 / (rank * (1 / rank).sum())
    table = centred @ axes.flip(1)[:, :dim] * (SIF / (SIF + probability))[:, None].sqrt()
    table /= table[FIRST_WORD:].square().mean().sqrt()
    table[:FIRST_CHARACTER] = 0
    return quantise(table)


def quantise(table: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (V, D) to int8 rows and a scale (V, 1) each, which float16 holds exactly."""
    scale = (table.abs().amax(1, keepdim=True) / 127).clamp(min=1e-4).half().float()
    return (table / scale).round().clamp(-127, 127).to(torch.int8), scale


# ---------------------------------------------------------------- distillation


@dataclass(frozen=True)
class Targets:
    """What the teacher says: `sentences` (N, D), and `tokens` (T, D), phrase i's from first[i] on."""

    sentences: Tensor
    tokens: Tensor
    first: Tensor

    def places(self, rows: Tensor, length: int) -> Tensor:
        """Where the first `length` tokens of some rows lie, (B, length); past a phrase it means nothing."""
        return (self.first[rows, None] + torch.arange(length)).clamp(max=len(self.tokens) - 1)


def teach(teacher: Teacher, tokenizer: Tokenizer, phrases: Sequence[str], batch: int = 256) -> Targets:
    """The teacher's vectors of all phrases, in float16; phrases of like length go through together."""
    ids, _, mask, _ = (torch.as_tensor(part) for part in tokenizer.encode(phrases))
    length = mask.sum(1)
    first = F.pad(length.cumsum(0), (1, 0))
    sentences = torch.empty(len(phrases), teacher.width, dtype=torch.float16)
    tokens = torch.empty(int(first[-1]), teacher.width, dtype=torch.float16)
    for rows in torch.split(length.argsort(), batch):
        longest = int(length[rows].max())
        framed = F.pad(ids[rows, :longest], (1, 1))
        framed[:, 0] = CLS
        framed[torch.arange(len(rows)), length[rows] + 1] = SEP
        seen = torch.arange(longest + 2) < (length[rows] + 2)[:, None]
        with torch.autocast("cpu", torch.bfloat16):
            states, sentences[rows] = (part.half() for part in teacher(framed, seen))
        inside = mask[rows, :longest]
        tokens[(first[rows, None] + torch.arange(longest))[inside]] = states[:, 1:-1][inside]
    return Targets(sentences, tokens, first)


def noun_roles(tokenizer: Tokenizer, phrases: Sequence[Phrase], first: Tensor) -> Tensor:
    """Roles (T, 3) of all tokens, laid out as Targets.tokens; -1 where a token names no thing."""
    roles = torch.full((int(first[-1]), len(ROLE_SIZES)), -1)
    scenes = [row for row, phrase in enumerate(phrases) if phrase.roles]
    encodings = tokenizer.pieces.encode_batch([phrases[row].text for row in scenes], add_special_tokens=False)
    for row, encoding in zip(scenes, encodings, strict=True):
        start, stop = int(first[row]), int(first[row + 1])
        for token, (place, _) in zip(range(start, stop), encoding.offsets, strict=False):
            role = phrases[row].roles[phrases[row].text.count(" ", 0, place)]
            if role is not None:
                roles[token] = torch.tensor(role)
    return roles


def batches(lengths: Tensor, size: int, steps: int, seed: int) -> Iterator[Tensor]:
    """Rows of each step: shuffled, then sorted by length within sixteen batches, for little padding."""
    generator = torch.Generator().manual_seed(seed)
    made = 0
    while True:
        for chunk in torch.split(torch.randperm(len(lengths), generator=generator), 16 * size):
            groups = torch.split(chunk[lengths[chunk].argsort()], size)
            for index in torch.randperm(len(groups), generator=generator).tolist():
                if made == steps:
                    return
                made += 1
                yield groups[index]


class Student(nn.Module):
    """The encoder with the linear readouts that exist only while it learns."""

    def __init__(self, encoder: TextEncoder, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.sentence = nn.Linear(encoder.config.width, width)
        self.token = nn.Linear(encoder.config.width, width)
        self.roles = nn.Linear(encoder.config.width, sum(ROLE_SIZES))

    def forward(self, ids: Tensor, grams: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """Pooled (B, width), sentence (B, D), tokens (B, L, D) role logits (B, L, sum(ROLE_SIZES))."""
        tokens, pooled = self.encoder(ids, grams, mask)
        return pooled, self.sentence(pooled), self.token(tokens), self.roles(tokens)


def distil_loss(output: tuple[Tensor, ...], wanted: tuple[Tensor, ...], right: Tensor) -> Tensor:
    """Cosine of sentences and, where `right` (B, L), of tokens; similarities in the batch; roles of nouns."""
    pooled, sentence, tokens, logits = (part.float() for part in output)
    wanted_sentence, wanted_tokens, roles = wanted
    cosine = 1 - F.cosine_similarity(sentence, wanted_sentence).mean()
    token = 1 - F.cosine_similarity(tokens[right], wanted_tokens[right]).mean()
    unit = F.normalize(pooled, dim=-1)
    itself = torch.eye(len(unit), dtype=torch.bool)
    student = (unit @ unit.T / 0.05).masked_fill(itself, -1e4).log_softmax(-1)
    teacher = (wanted_sentence @ wanted_sentence.T / 0.05).masked_fill(itself, -1e4).softmax(-1)
    alike = F.kl_div(student, teacher, reduction="batchmean")
    nouns = right & (roles[..., 0] >= 0)
    parts = zip(torch.split(logits[nouns], list(ROLE_SIZES), -1), roles[nouns].T, strict=True)
    role = sum((F.cross_entropy(guess, truth, reduction="sum") for guess, truth in parts), torch.zeros(()))
    return cosine + 0.5 * token + 0.2 * alike + 0.1 * role / nouns.sum().clamp(min=1)


@dataclass(frozen=True)
class DistilConfig:
    """Dials of the distillation."""

    scenes: int = 36_000
    steps: int = 3_500
    batch: int = 256
    lr: float = 1.5e-3
    lr_grams: float = 6e-3
    weight_decay: float = 0.02
    misspelt: float = 0.3
    dropout: float = 0.05
    seed: int = 0


def train(encoder: TextEncoder, phrases: Sequence[Phrase], targets: Targets, config: DistilConfig) -> Student:
    """Train the layers and n-grams of `encoder` in place on the phrases that are not held out."""
    rng, tokenizer = random.Random(config.seed), Tokenizer()
    student = Student(encoder, targets.sentences.shape[1]).train()
    roles = noun_roles(tokenizer, phrases, targets.first)
    learnt = torch.tensor([row for row, phrase in enumerate(phrases) if not is_held_out(phrase.text)])
    rest = [weight for weight in student.parameters() if weight is not encoder.grams.weight]
    groups = [
        {"params": rest, "lr": config.lr, "weight_decay": config.weight_decay},
        {"params": [encoder.grams.weight], "lr": config.lr_grams, "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _warm_cosine(step, config.steps))
    lengths = targets.first.diff()[learnt]
    began, shown = time.monotonic(), 0.0
    for step, places in enumerate(batches(lengths, config.batch, config.steps, config.seed), 1):
        rows = learnt[places]
        texts = [phrases[row].text for row in rows.tolist()]
        slips = [rng.random() < config.misspelt for _ in texts]
        texts = [misspell(text, rng) if slip else text for text, slip in zip(texts, slips, strict=True)]
        ids, grams, mask, _ = (torch.as_tensor(part) for part in tokenizer.encode(texts))
        length = int(mask.sum(1).max())
        right = mask[:, :length] & ~torch.tensor(slips)[:, None]
        with torch.autocast("cpu", torch.bfloat16):
            output = student(ids[:, :length], grams[:, :length], mask[:, :length])
        tokens = targets.places(rows, length)
        wanted = targets.sentences[rows].float(), targets.tokens[tokens].float(), roles[tokens]
        loss = distil_loss(output, wanted, right)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        shown += loss.item()
        if step % 100 == 0:
            left = (time.monotonic() - began) / step * (config.steps - step)
            print(f"step {step}/{config.steps}  loss {shown / 100:.4f}  {left / 60:.1f} min left", flush=True)
            shown = 0.0
    return student.eval()


def _warm_cosine(step: int, steps: int, warm: int = 100) -> float:
    return min(step / warm, 1.0) * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))


# ---------------------------------------------------------------- measuring

Scores = dict[str, float]


def encode_pooled(encoder: TextEncoder, texts: Sequence[str]) -> Tensor:
    """Pooled vectors (B, width) of texts, unit length."""
    ids, grams, mask, _ = (torch.as_tensor(part) for part in Tokenizer().encode(texts))
    with torch.inference_mode():
        return F.normalize(encoder.eval()(ids, grams, mask)[1], dim=-1)


def encode_bag(encoder: TextEncoder, texts: Sequence[str]) -> Tensor:
    """The baseline: the mean of a text's table rows (B, table_dim), unit length."""
    ids, _, mask, _ = (torch.as_tensor(part) for part in Tokenizer().encode(texts))
    return F.normalize((encoder.table(ids) * mask[..., None]).sum(1), dim=-1)


def retrieval(queries: Tensor, labels: Tensor, names: Sequence[str]) -> Scores:
    """How often the nearest label, and one of the five nearest, means what the query means."""
    nearest = (queries @ labels.T).topk(5).indices.tolist()
    hits = np.array(
        [
            [re.search(pattern, names[label].lower()) is not None for label in row]
            for pattern, row in zip(QUERIES.values(), nearest, strict=True)
        ]
    )
    return {"top1": float(hits[:, 0].mean()), "top5": float(hits.any(1).mean())}


def spearman(a: Tensor, b: Tensor) -> float:
    """Rank correlation of the pairwise similarities of two sets of unit vectors, one row a phrase."""
    upper = np.triu_indices(len(a), 1)
    first, second = ((x @ x.T).numpy()[upper].argsort().argsort() for x in (a.float(), b.float()))
    return float(np.corrcoef(first, second)[0, 1])


@torch.inference_mode()
def measure(student: Student, teacher: Teacher, labels: Sequence[str], phrases: Sequence[Phrase]) -> dict[str, Any]:
    """Figures on held-out `phrases` and on the retrieval test, beside the baseline's and the teacher's."""
    encoder, tokenizer, rng = student.encoder, Tokenizer(), random.Random(0)
    texts = [phrase.text for phrase in phrases]
    targets = teach(teacher, tokenizer, texts)
    wanted, pooled = targets.sentences.float(), encode_pooled(encoder, texts)
    queries, said = list(QUERIES), teach(teacher, tokenizer, [*QUERIES, *labels]).sentences.float()
    words = [text for text in texts if text.isalpha() and len(text) >= 6]
    slips = encode_pooled(encoder, [misspell(word, rng) for word in words]) @ encode_pooled(encoder, words).T
    ids, grams, mask, _ = (torch.as_tensor(part) for part in tokenizer.encode(texts))
    _, readout, _, logits = student(ids, grams, mask)
    roles = noun_roles(tokenizer, phrases, targets.first)
    nouns = roles[:, 0] >= 0
    parts = zip(torch.split(logits[mask][nouns], list(ROLE_SIZES), -1), roles[nouns].T, strict=True)
    binding = [(guess.argmax(-1) == truth).float().mean().item() for guess, truth in parts]
    return {
        "held_out_phrases": len(phrases),
        "held_out_cosine_to_teacher": F.cosine_similarity(readout, wanted).mean().item(),
        "spearman": {
            "pooled": spearman(pooled, wanted),
            "bag": spearman(encode_bag(encoder, texts), wanted),
        },
        "nouns_in_scenes": int(nouns.sum()),
        "noun_tells": dict(zip(("colour", "number", "place"), binding, strict=True)),
        "misspelt_words": len(words),
        "misspelt_word_finds_its_word": (slips.argmax(1) == torch.arange(len(words))).float().mean().item(),
        "retrieval": {
            "queries": len(queries),
            "labels": len(labels),
            "pooled": retrieval(encode_pooled(encoder, queries), encode_pooled(encoder, labels), labels),
            "bag": retrieval(encode_bag(encoder, queries), encode_bag(encoder, labels), labels),
            "teacher": retrieval(said[: len(queries)], said[len(queries) :], labels),
        },
    }


# ---------------------------------------------------------------- saving


def write_tokenizer(teacher: bytes, out: Path) -> None:
    """The teacher's word pieces alone: no truncation, padding, or special tokens that a text could spell."""
    rules = json.loads(teacher)
    rules |= {"truncation": None, "padding": None, "post_processor": None, "added_tokens": []}
    out.write_text(json.dumps(rules, ensure_ascii=False, separators=(",", ":")) + "\n", "utf-8")


def write_encoder(encoder: TextEncoder, out: Path) -> None:
    """Word vectors in 4 bits, matrices in 8, the rest in 16."""
    write_packed(packed_state(encoder), out)
    out.chmod(0o644)


def rounded(value: Any) -> Any:
    """Figures fit to print: floats to three places, all the way down."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return round(value, 3) if isinstance(value, float) else value


def main() -> None:
    """Distil and write the three files of assets/text."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--teacher", default="sentence-transformers/all-MiniLM-L6-v2", help="folder, wheel or hub id")
    parser.add_argument("--emojibase", type=Path, required=True, help="npm tarball of emojibase-data")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--steps", type=int, default=DistilConfig.steps)
    args = parser.parse_args()
    config = DistilConfig(steps=args.steps)
    torch.manual_seed(config.seed)
    args.out.mkdir(parents=True, exist_ok=True)

    source = read_teacher(args.teacher)
    write_tokenizer(source["tokenizer.json"], args.out / "tokenizer.json")
    teacher, tokenizer = Teacher(source), Tokenizer()
    vocabulary: dict[str, int] = tokenizer.pieces.get_vocab()
    pieces = sorted(vocabulary, key=vocabulary.__getitem__)[FIRST_WORD:]
    concepts = read_concepts(args.emojibase)
    words = [piece for piece in pieces if re.fullmatch("[a-z]{3,}", piece)]
    phrases = make_phrases(concepts, words, config.seed, config.scenes)

    encoder = TextEncoder(TextConfig(dropout=config.dropout))
    rows, scale = word_table(word_vectors(teacher, encoder.config.vocab), encoder.config.table_dim)
    encoder.table.rows.copy_(rows)
    encoder.table.scale.copy_(scale)
    print(f"{len(phrases):,} phrases; asking the teacher", flush=True)
    targets = teach(teacher, tokenizer, [phrase.text for phrase in phrases])
    student = train(encoder, phrases, targets, config)

    write_encoder(encoder, args.out / "text.safetensors")
    stored = unpack(read_packed(args.out / "text.safetensors"))  # what is measured is what ships
    encoder.load_state_dict({name: torch.from_numpy(array) for name, array in stored.items()})
    held_out = [phrase for phrase in phrases if is_held_out(phrase.text)]
    measured = measure(student, teacher, [concept.label for concept in concepts], held_out)
    record = {
        "model": {name: size for name, size in asdict(encoder.config).items() if name != "dropout"},
        "licence": "Apache-2.0",
        "sources": {
            "teacher": "sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0): vectors, vocabulary",
            "teacher_sha256": hashlib.sha256(source["model.safetensors"]).hexdigest(),
            "phrases": "emojibase-data (MIT): English labels and tags",
            "phrases_sha256": hashlib.sha256(args.emojibase.read_bytes()).hexdigest(),
        },
        "recipe": asdict(config) | {"phrases": len(phrases), "made_by": "recipes/text-encoder.sh"},
        "measured": rounded(measured),
    }
    (args.out / "config.json").write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    print(json.dumps(record["measured"], indent=2))


if __name__ == "__main__":
    main()
