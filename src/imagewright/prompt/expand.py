"""From a template to the prompts that it stands for: `{a,b}` permutations, and `__name__` wildcards from text files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import product
from math import prod
from pathlib import Path

from imagewright.errors import PromptError
from imagewright.request import MAX_N, MAX_PROMPT

MAX_JOBS = MAX_N
MAX_DEPTH = 32  # of braces in braces, and of wildcards in wildcards
MAX_FILLED = 1000  # wildcards in one prompt
MAX_FILE = 5_000_000  # bytes of a wildcard file

Choice = tuple[str, str]  # what stood in the template, and what was chosen

_BRACES = re.compile(r"\\.|[{},|]|[^\\{},|]+|\\", re.DOTALL)
_ESCAPED = {rf"\{mark}": mark for mark in "{},|"}
_WILDCARD = re.compile(r"(?<![\w\\])__([\w-]{1,64}(?:/[\w-]{1,64}){0,8}?)__(?!\w)")


@dataclass(frozen=True)
class Branch:
    """One of the texts that a template stands for, and which alternative each pair of braces gave it."""

    text: str
    choices: tuple[Choice, ...] = ()


def permutations(template: str) -> list[Branch]:
    """Every combination of the alternatives in `{a,b}` or `{a|b}`, the leftmost braces changing last.

    Braces may stand in braces; `\\{ \\} \\, \\|` are the characters themselves. Where braces hold a bar outside of
    inner braces, bars separate and commas do not. Raises PromptError on an open brace, on more than MAX_JOBS
    combinations and on braces more than MAX_DEPTH deep.
    """
    tokens = _BRACES.findall(template)
    parts: list[list[Branch]] = []
    at, count = 0, 1
    while at < len(tokens):
        if tokens[at] == "{":
            start, (texts, at) = at, _group(tokens, at + 1, 1)
            source = "".join(tokens[start:at])
            parts.append([Branch(text, ((source, text),)) for text in texts])
            count = _limited(count * len(texts))
        else:
            parts.append([Branch(_ESCAPED.get(tokens[at], tokens[at]))])
            at += 1
    return [
        Branch("".join(one.text for one in row), tuple(choice for one in row for choice in one.choices))
        for row in product(*parts)
    ]


def _group(tokens: Sequence[str], at: int, depth: int) -> tuple[list[str], int]:
    """The alternatives of the braces whose inside begins at token `at`, and the place behind them."""
    if depth > MAX_DEPTH:
        raise PromptError(f"Braces are more than {MAX_DEPTH} deep.", r"Write \{ to have the brace itself.")
    items: list[list[str] | str] = []  # alternatives of inner braces, or a piece of text
    while at < len(tokens) and tokens[at] != "}":
        if tokens[at] == "{":
            inner, at = _group(tokens, at + 1, depth + 1)
            items.append(inner)
        else:
            items.append(tokens[at])
            at += 1
    if at == len(tokens):
        raise PromptError("A { is never closed.", r"Close it with }, or write \{ to have the brace itself.")
    separator = "|" if "|" in items else ","
    found: list[str] = []
    for alternative in _split(items, separator):
        rows = [[_ESCAPED.get(item, item)] if isinstance(item, str) else item for item in alternative]
        _limited(len(found) + prod(map(len, rows)))
        found += ["".join(row).strip() for row in product(*rows)]
    return found, at + 1


def _split(items: Sequence[list[str] | str], separator: str) -> Iterator[list[list[str] | str]]:
    alternative: list[list[str] | str] = []
    for item in items:
        if item == separator:
            yield alternative
            alternative = []
        else:
            alternative.append(item)
    yield alternative


def _limited(count: int) -> int:
    if count > MAX_JOBS:
        raise PromptError(
            f"The braces of the prompt make more than {MAX_JOBS} pictures.", r"Use fewer, or write \{ for a brace."
        )
    return count


@dataclass(frozen=True)
class Wildcards:
    """Text files whose lines stand for `__name__`: `folder/name.txt`, one entry a line, `#` starts a comment line.

    Which entry is taken depends on the seed, the name and which of the same name it is in the prompt, and on nothing
    else: not on the order of the lines, nor on other wildcards, nor on what was drawn before.
    """

    folder: Path | None
    _files: dict[str, tuple[str, ...]] = field(default_factory=dict, compare=False)

    def named(self, text: str) -> list[str]:
        """The names of the wildcards in `text`."""
        return _WILDCARD.findall(text)

    def fill(self, text: str, seed: int) -> tuple[str, tuple[Choice, ...]]:
        """`text` with an entry for each of its wildcards, and which. Raises PromptError."""
        filler = _Filler(self, seed)
        filled = filler.fill(text, ())
        return filled, tuple(filler.choices)

    def entries(self, name: str) -> tuple[str, ...]:
        """The lines of a file. Raises PromptError where there is no such file, or nothing in it."""
        if name not in self._files:
            self._files[name] = self._read(name)
        return self._files[name]

    def _read(self, name: str) -> tuple[str, ...]:
        assert self.folder is not None
        path = self.folder / f"{name}.txt"
        if not path.is_file():
            there = sorted(one.stem for one in self.folder.glob("*.txt"))[:20]
            raise PromptError(
                f"There is no wildcard __{name}__: no file {str(path)!r}.",
                f"There are: {', '.join(there) or 'none'}. Write --plain to take the prompt as it is.",
            )
        try:
            if path.stat().st_size > MAX_FILE:
                raise PromptError(f"{str(path)!r} is larger than {MAX_FILE // 1_000_000} MB.", "Split the file.")
            lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise PromptError(f"{str(path)!r} cannot be read: {error}.", "Store it as UTF-8 text.") from error
        found = tuple(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
        if not found:
            raise PromptError(f"{str(path)!r} has no entries.", "Write one a line.")
        return found


class _Filler:
    """One prompt being filled: counts what was put in, so that files that name each other cannot grow without end."""

    def __init__(self, wildcards: Wildcards, seed: int) -> None:
        self.wildcards, self.seed, self.filled = wildcards, seed, 0
        self.choices: list[Choice] = []

    def fill(self, text: str, above: tuple[str, ...], key: str = "") -> str:
        """`above`: the names whose entries `text` is in; `key`: which of them."""
        counts: dict[str, int] = {}

        def entry(match: re.Match[str]) -> str:
            name = match[1]
            counts[name] = counts.get(name, 0) + 1
            chosen = self._chosen(name, f"{key}/{name}:{counts[name]}", above)
            if not above:
                self.choices.append((match[0], chosen))
            return chosen

        filled = _WILDCARD.sub(entry, text)
        if len(filled) > MAX_PROMPT:
            raise PromptError(f"With its wildcards the prompt is longer than {MAX_PROMPT:,} characters.", "Shorten it.")
        return filled

    def _chosen(self, name: str, key: str, above: tuple[str, ...]) -> str:
        self.filled += 1
        if name in above:
            circle = " -> ".join((*above[above.index(name) :], name))
            raise PromptError(f"Wildcards lead in a circle: {circle}.", "Mend one of these files.")
        if len(above) >= MAX_DEPTH or self.filled > MAX_FILLED:
            raise PromptError("Wildcards lead to too many others.", f"Use at most {MAX_FILLED} in one prompt.")
        return self.fill(pick(self.wildcards.entries(name), self.seed, key), (*above, name), key)


def pick(entries: Sequence[str], seed: int, key: str) -> str:
    """One of `entries` by the highest hash (rendezvous hashing): each is as likely, and the order does not matter."""
    return max(entries, key=lambda one: sha256(f"{seed}\n{key}\n{one}".encode("utf-8", "replace")).digest())
