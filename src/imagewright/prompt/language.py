"""The prompt language: text to jobs, and jobs to requests."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from imagewright.errors import PromptError, UnsupportedError
from imagewright.prompt.expand import MAX_JOBS, Branch, Choice, Wildcards, permutations
from imagewright.prompt.parameters import SUFFIXES, local, read, split
from imagewright.prompt.weights import weighted
from imagewright.request import MAX_PROMPT, MAX_SEED, Adjustment, Emphasis, ImageRequest

_FIRST_WORD = re.compile(r'\s*(?:"([^"]+)"|(\S+))(?=\s|$)')
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Parsed:
    """One job of a prompt. `prompt`: the clean words; `emphasis`: the weights of their parts; `fields`: what parameters
    set, by ImageRequest's names; `pictures`: files to open, by the field that they fill; `adjustments`: what was
    understood otherwise than asked; `template` (None: the text is its own) and `choices`: what it was made from."""

    prompt: str
    emphasis: tuple[Emphasis, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)
    pictures: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    adjustments: tuple[Adjustment, ...] = ()
    template: str | None = None
    choices: tuple[Choice, ...] = ()

    def request(self, opened: Callable[[Path], Image.Image] | None = None, **explicit: Any) -> ImageRequest:
        """The request of this job. `explicit` fields win over the prompt's parameters, and that is said; `opened` reads
        a picture (pictures.open_picture; None: refuse those that a prompt names).

        `explicit` has the `seed` and the `n` that `parse` was given. Raises RequestError, PictureError.
        """
        said = {"prompt": self.prompt, "emphasis": self.emphasis, **self.fields, **self._opened(opened)}
        explicit = {name: value for name, value in explicit.items() if name not in ("seed", "n") or name not in said}
        told = [
            Adjustment(name, _told(said[name]), _told(value), "the option wins over the prompt")
            for name, value in explicit.items()
            if name in said and said[name] != value
        ]
        return ImageRequest(
            **{**said, **explicit},
            prompt_template=self.template,
            prompt_choices=self.choices,
            adjustments=(*self.adjustments, *told),
        )

    def _opened(self, opened: Callable[[Path], Image.Image] | None) -> dict[str, Any]:
        if self.pictures and opened is None:
            raise UnsupportedError("A prompt cannot name picture files here.", "Give the pictures themselves.")
        read: dict[str, Any] = {name: tuple(map(opened, paths)) for name, paths in self.pictures.items() if opened}
        if "image" in read:
            first, *others = read.pop("image")
            read |= {"image": first, "images": tuple(others)} if others else {"image": first}
        return read


def parse(
    text: str, *, wildcards: Path | None = None, seed: int | None = None, n: int = 1, repeat: int | None = None
) -> list[Parsed]:
    """The jobs that `text` stands for, at most MAX_JOBS. Opens no picture and draws nothing.

    `seed` (else the text's own --seed) chooses among the lines of the wildcard files in the folder `wildcards`;
    without one it is drawn at random where there are wildcards. A job with wildcards makes one of the `n` pictures,
    because each picture has a seed of its own. `seed` and `repeat` win over the text's own. Raises PromptError.
    """
    if not text.strip():
        raise PromptError("The prompt is empty.", "Say what the picture should show, for example: a red fox")
    if len(text) > MAX_PROMPT:
        raise PromptError(
            f"The prompt has {len(text):,} characters; at most {MAX_PROMPT:,} are allowed.", "Shorten it."
        )
    files = Wildcards(wildcards)
    jobs: list[Parsed] = []
    for branch in permutations(text):
        jobs += _jobs(branch, files, seed, n, repeat)
        if len(jobs) > MAX_JOBS:
            raise PromptError(f"The prompt makes more than {MAX_JOBS} jobs.", "Use fewer braces or repeats.")
    return [replace(job, template=text) if job.choices else job for job in jobs]


def plain(text: str, *, seed: int | None = None, n: int = 1, repeat: int | None = None) -> list[Parsed]:
    """The jobs of a text that is taken as it is: one, or as many as `repeat` says."""
    return [_seeded(Parsed(prompt=text), seed, index * n) for index in range(repeat or 1)]


def _jobs(branch: Branch, files: Wildcards, seed: int | None, n: int, repeat: int | None) -> list[Parsed]:
    """The jobs of one text without braces: as often as it is repeated, and with wildcards once for each picture."""
    own = read([(parameter, value) for parameter, value in split(branch.text)[1] if parameter.names[0] in _COUNTED])
    times = own.repeat if repeat is None else repeat
    written = own.fields.get("seed")
    said = []
    if seed is not None and written not in (None, seed):
        said.append(Adjustment("seed", written, seed, "the option wins over the prompt"))
    seed = written if seed is None else seed
    names = files.named(branch.text)
    if not names or files.folder is None:
        said += [Adjustment("wildcards", f"__{name}__", None, "no folder of wildcards was given") for name in names[:1]]
        job = _parsed(branch.text, branch.choices, said)
        return [_seeded(job, seed, index * n) for index in range(times)]
    first = secrets.randbelow(MAX_SEED) if seed is None else seed
    if times * n > MAX_JOBS:
        raise PromptError(f"The prompt makes more than {MAX_JOBS} jobs.", "Ask for fewer pictures or repeats.")
    jobs = []
    for index in range(times * n):
        text, chosen = files.fill(branch.text, (first + index) % MAX_SEED)
        job = _parsed(text, (*branch.choices, *chosen), said)
        if job.fields.get("seed") != written:
            raise PromptError("A wildcard cannot set the seed, because the seed chooses it.", "Take --seed out of it.")
        jobs.append(_seeded(job, first, index, n=1))
    return jobs


_COUNTED = ("seed", "repeat")


def _seeded(job: Parsed, seed: int | None, further: int, **counted: int) -> Parsed:
    own = {} if seed is None else {"seed": (seed + further) % MAX_SEED if further else seed}
    return replace(job, fields={**job.fields, **own, **counted})


def _parsed(text: str, choices: tuple[Choice, ...], said: list[Adjustment]) -> Parsed:
    words, parameters = split(text)
    found = read(parameters)
    images, words = _front(words)
    clean = weighted(words)
    if not clean.text:
        raise PromptError("The prompt has no words.", "Say what the picture should show, before all parameters.")
    set_fields, adjustments = dict(found.fields), [*said, *found.adjustments]
    if clean.negative:
        avoided = [set_fields["negative_prompt"]] if "negative_prompt" in set_fields else []
        set_fields["negative_prompt"] = ", ".join([*avoided, *clean.negative])
    if "strength" in set_fields and not images:
        adjustments.append(Adjustment("--iw", set_fields.pop("strength"), None, "no picture is in front of the prompt"))
    return Parsed(
        prompt=clean.text,
        emphasis=clean.emphasis,
        fields=set_fields,
        pictures={**({"image": images} if images else {}), **found.pictures},
        adjustments=tuple(adjustments),
        choices=choices,
    )


def _front(words: str) -> tuple[tuple[Path, ...], str]:
    """The picture files that a prompt begins with, and its words."""
    images: list[Path] = []
    while match := _FIRST_WORD.match(words):
        name = match[1] or match[2]
        if not name.lower().endswith(SUFFIXES) and not _URL.match(name):
            break
        images.append(local(name))
        words = words[match.end() :]
    return tuple(images), words


def _told(value: Any) -> Any:
    """A field's value as a record can hold it."""
    if isinstance(value, Image.Image):
        return f"a picture of {value.width}x{value.height}"
    if isinstance(value, tuple) and any(isinstance(one, Image.Image) for one in value):
        return f"{len(value)} pictures"
    return value
