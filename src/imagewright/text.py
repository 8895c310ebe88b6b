"""Text to token numbers, without torch: word pieces, and character n-grams for words that have no piece.

The word pieces are lower-cased BERT's (30,522, from all-MiniLM-L6-v2, Apache-2.0). A word that the vocabulary
splits or does not know also gets hashed character n-grams (fastText, arXiv 1607.04606), so that a typo lands
near its word. An emoji or another symbol is read by its Unicode name.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding
from tokenizers import Tokenizer as WordPieces

MAX_TOKENS = 24
GRAM_BUCKETS = 4096  # bucket 0 means none
GRAMS_PER_PIECE = 8
PAD_ID = 0  # also the one token of an empty text
_REGIONAL_A, _REGIONAL_Z = 0x1F1E6, 0x1F1FF  # a flag is two of these
_TONES = ("light", "medium-light", "medium", "medium-dark", "dark")  # U+1F3FB and on
_FIRST_TONE = 0x1F3FB

Tokens = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_], list[int]]


class Tokenizer:
    """The tokenizer that all four techniques share; every output has a fixed length, for static shapes."""

    def __init__(self) -> None:
        vocabulary = files("imagewright") / "assets" / "text" / "tokenizer.json"
        self.pieces: Any = WordPieces.from_str(vocabulary.read_text("utf-8"))

    def encode(self, texts: Sequence[str], max_tokens: int = MAX_TOKENS) -> Tokens:
        """(ids (B, L) int64, grams (B, L, G) int64, mask (B, L) bool, tokens cut off each text).

        L = max_tokens. An empty text has one padding token, so no row of the mask is all False.
        """
        ids = np.full((len(texts), max_tokens), PAD_ID, np.int64)
        grams = np.zeros((len(texts), max_tokens, GRAMS_PER_PIECE), np.int64)
        mask = np.zeros((len(texts), max_tokens), bool)
        mask[:, 0] = True
        cut = []
        spoken = [spell_symbols(text) for text in texts]
        for row, encoding in enumerate(self.pieces.encode_batch(spoken, add_special_tokens=False)):
            kept = encoding.ids[:max_tokens]
            ids[row, : len(kept)] = kept
            mask[row, : len(kept)] = True
            for piece, buckets in enumerate(_piece_grams(encoding, spoken[row], max_tokens)):
                grams[row, piece, : len(buckets)] = buckets
            cut.append(len(encoding.ids) - len(kept))
        return ids, grams, mask, cut

    def weights(
        self, text: str, emphasis: Sequence[tuple[int, int, float]], max_tokens: int = MAX_TOKENS
    ) -> NDArray[np.float32]:
        """The weight (L,) of each token: that of the span (from, to, weight) of `text` in which it begins, else 1."""
        by_character = np.ones(len(text) + 1, np.float32)
        for start, end, weight in emphasis:
            by_character[start:end] = weight
        weights = np.ones(max_tokens, np.float32)
        starts = self._starts(text)[:max_tokens]
        weights[: len(starts)] = by_character[starts]
        return weights

    def unread(self, text: str, max_tokens: int = MAX_TOKENS) -> str:
        """The end of a text that is cut off, from the word of the first token behind `max_tokens`; empty if none is."""
        starts = self._starts(text)
        if len(starts) <= max_tokens:
            return ""
        read = text[: starts[max_tokens]]
        return text[len(read) - len(re.split(r"\s", read)[-1]) :].strip()

    def _starts(self, text: str) -> list[int]:
        """Where in `text` each token begins."""
        offsets = self.pieces.encode(spell_symbols(text), add_special_tokens=False).offsets
        came_from = [index for index, character in enumerate(text) for _ in _spell(character)]
        return [came_from[start] for start, _ in offsets]

    def names(self, text: str, max_tokens: int = MAX_TOKENS) -> list[str]:
        """The word pieces of a text as text, one a token."""
        tokens: list[str] = self.pieces.encode(spell_symbols(text), add_special_tokens=False).tokens
        return tokens[:max_tokens]


def word_grams(word: str) -> list[int]:
    """Hash buckets (1 .. GRAM_BUCKETS - 1) of a word's 3-, 4- and 5-grams, boundaries marked with < and >."""
    marked = f"<{word}>"
    slices = (marked[i : i + n] for n in (3, 4, 5) for i in range(len(marked) - n + 1))
    return [1 + zlib.crc32(gram.encode()) % (GRAM_BUCKETS - 1) for gram in slices]


def spell_symbols(text: str) -> str:
    """The text with emoji and other symbols as their Unicode names: "a 🦊" becomes "a  fox face "."""
    readable = text.encode("utf-8", "replace").decode()  # a lone surrogate cannot reach the vocabulary
    return readable if readable.isascii() else "".join(map(_spell, readable))


@lru_cache(maxsize=4096)
def _spell(character: str) -> str:
    if _REGIONAL_A <= ord(character) <= _REGIONAL_Z:
        return chr(ord("a") + ord(character) - _REGIONAL_A)
    if 0 <= (tone := ord(character) - _FIRST_TONE) < len(_TONES):
        return f" {_TONES[tone]} skin tone "
    if unicodedata.category(character) == "So":
        return f" {unicodedata.name(character, character).lower()} "
    return character


def _piece_grams(encoding: Encoding, text: str, max_tokens: int) -> list[list[int]]:
    """Buckets of the first `max_tokens` pieces; the pieces of one word share its n-grams out among them."""
    result: list[list[int]] = []
    words, offsets, names = encoding.word_ids, encoding.offsets, encoding.tokens
    for _, group in groupby(range(len(names)), key=words.__getitem__):
        pieces = list(group)
        whole = len(pieces) == 1 and names[pieces[0]] != "[UNK]"
        word = text[offsets[pieces[0]][0] : offsets[pieces[-1]][1]].lower()
        buckets = [] if whole else word_grams(word)
        result += [buckets[i :: len(pieces)][:GRAMS_PER_PIECE] for i in range(len(pieces))]
        if len(result) >= max_tokens:
            break
    return result[:max_tokens]
