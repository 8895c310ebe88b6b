"""Phrases for distilling the text encoder: names and tags of emoji, scenes, words, misspellings.

The names and tags are emojibase's (MIT). A fixed part is held out, and every query of the retrieval test.
"""

from __future__ import annotations

import json
import random
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from imagewright.errors import DataError

COLOURS = (
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
    "brown",
    "black",
    "white",
    "grey",
    "golden",
)
COUNTS = ("one", "two", "three", "four", "five")
QUALITIES = (
    "big",
    "small",
    "tiny",
    "happy",
    "sad",
    "cute",
    "old",
    "new",
    "round",
    "shiny",
    "sleepy",
    "angry",
    "funny",
)
RELATIONS = (
    *(
        "to the left of",
        "to the right of",
        "above",
        "below",
        "next to",
        "inside",
        "on top of",
        "under",
        "behind",
    ),
    *("in front of", "and", "with"),
)
FORMS = (
    *(
        "{}",
        "a {}",
        "the {}",
        "{} emoji",
        "a cute {}",
        "a sticker of {}",
        "an icon of {}",
        "a picture of a {}",
    ),
    *("a flat {} icon", "a {}, flat design", "a 3d {}", "a cartoon {}", "drawing of {}, simple style"),
    "{} on a white background",
)
SCENE_GROUPS = {0, 3, 4, 5, 6, 7}  # emojibase: smileys, animals, food, travel, activities, objects
HELD_OUT = 32  # one phrase of so many is kept for measuring


@dataclass(frozen=True)
class Concept:
    """An emojibase entry: its label, tags and group, and the labels of its skin tones."""

    label: str
    tags: tuple[str, ...]
    group: int
    tones: tuple[str, ...]


def read_concepts(tarball: Path) -> list[Concept]:
    """The English entries of an emojibase-data package, without the letters that only spell flags."""
    with tarfile.open(tarball) as tar:
        member = tar.extractfile("package/en/data.json")
        if member is None:
            raise DataError(f"{tarball} has no English names.", "Give the npm tarball of emojibase-data.")
        entries = json.load(member)
    return [
        Concept(
            e["label"], tuple(e.get("tags", ())), e["group"], tuple(s["label"] for s in e.get("skins", ()))
        )
        for e in entries
        if "group" in e
    ]


def make_phrases(concepts: Sequence[Concept], words: Sequence[str], seed: int, scenes: int) -> list[str]:
    """Distinct phrases: labels, tags, both, scenes, and `words` (frequent first) alone and in pairs."""
    rng = random.Random(seed)
    objects = [c.label for c in concepts if c.group in SCENE_GROUPS and len(c.label.split()) <= 2]
    frequent = words[:8000]
    phrases = [p for c in concepts for p in _concept_phrases(c, rng)]
    phrases += [_scene(objects, rng) for _ in range(scenes)]
    phrases += words
    phrases += [f"{rng.choice(frequent)} {rng.choice(frequent)}" for _ in range(scenes // 3)]
    phrases += [f"{rng.choice(COLOURS + QUALITIES)} {rng.choice(frequent)}" for _ in range(scenes // 3)]
    return list(dict.fromkeys(phrase.strip() for phrase in phrases))


def _concept_phrases(concept: Concept, rng: random.Random) -> Iterator[str]:
    yield from (concept.label, *concept.tones, *concept.tags)
    for form in rng.sample(FORMS, 6):
        yield form.format(concept.label)
    for _ in range(min(6, len(concept.tags))):
        some = rng.sample(concept.tags, rng.randint(1, min(4, len(concept.tags))))
        yield ", ".join([concept.label, *some])
        yield rng.choice((", ", " ")).join(some)
        yield rng.choice(FORMS).format(rng.choice(some))


def _scene(objects: Sequence[str], rng: random.Random) -> str:
    scene = _thing(objects, rng)
    if rng.random() < 0.5:
        scene += f" {rng.choice(RELATIONS)} {_thing(objects, rng)}"
    if rng.random() < 0.25:
        scene += f" on a {rng.choice(COLOURS)} background"
    return scene


def _thing(objects: Sequence[str], rng: random.Random) -> str:
    name, count = rng.choice(objects), rng.choice(COUNTS)
    quality = rng.choice([*COLOURS, *COLOURS, *QUALITIES]) if rng.random() < 0.6 else ""
    if rng.random() < 0.3 and count != "one":
        return f"{count} {quality} {name}s".replace("  ", " ")
    article = "an" if (quality or name)[0] in "aeiou" else "a"
    return f"{article} {quality} {name}".replace("  ", " ")


def misspell(phrase: str, rng: random.Random) -> str:
    """One slip in one word of four letters or more: a letter lost, swapped, doubled or mistaken."""
    words = phrase.split(" ")
    long = [i for i, word in enumerate(words) if len(word) >= 4 and word.isalpha()]
    if not long:
        return phrase
    place = rng.choice(long)
    word = words[place]
    at = rng.randrange(1, len(word) - 1)
    words[place] = rng.choice(
        (
            word[:at] + word[at + 1 :],
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
            word[:at] + word[at] + word[at:],
            word[:at] + rng.choice("abcdefghijklmnopqrstuvwxyz") + word[at + 1 :],
        )
    )
    return " ".join(words)


def is_held_out(phrase: str) -> bool:
    """Kept from training: one phrase in HELD_OUT by its checksum, and every query of the retrieval test."""
    return phrase in QUERIES or zlib.crc32(phrase.encode()) % HELD_OUT == 0


QUERIES = {  # a text that is no label -> a pattern of labels that mean it
    "puppy": r"\bdog|poodle",
    "doggo": r"\bdog|poodle",
    "hound": r"\bdog|poodle",
    "kitty": r"\bcat\b",
    "feline": r"\bcat\b|tiger|lion|leopard",
    "kitten": r"\bcat\b",
    "bunny": r"rabbit",
    "hare": r"rabbit",
    "automobile": r"automobile|\bcar\b|vehicle|taxi",
    "sedan": r"automobile|\bcar\b|taxi",
    "aeroplane": r"airplane|plane",
    "jet plane": r"airplane",
    "ocean wave": r"wave|water",
    "tidal wave": r"wave|water",
    "xmas tree": r"christmas tree",
    "strawbery": r"strawberry",
    "bannana": r"banana",
    "elefant": r"elephant",
    "girafe": r"giraffe",
    "pengiun": r"penguin",
    "buterfly": r"butterfly",
    "octopuss": r"octopus",
    "pinapple": r"pineapple",
    "unicron": r"unicorn",
    "dinosaur": r"t-rex|sauropod|dragon",
    "reptile": r"lizard|snake|crocodile|turtle|t-rex",
    "insect": r"bug|beetle|ant|bee|fly|cricket|mosquito|worm|cockroach",
    "bicycle rider": r"bik|bicycle|cycl",
    "motorbike": r"motorcycle|scooter",
    "lorry": r"truck",
    "steam train": r"locomotive|train|railway",
    "starship": r"rocket|flying saucer|satellite",
    "house": r"house|home|hut|building",
    "cottage": r"house|home|hut",
    "mug of coffee": r"hot beverage|cup|coffee",
    "cup of tea": r"teacup|hot beverage|teapot|bubble tea|tea",
    "lager": r"beer",
    "burger": r"hamburger",
    "french fry": r"french fries",
    "pastry": r"pie|cake|croissant|doughnut|cookie|bread|moon cake|waffle|pretzel|bagel",
    "physician": r"health worker|stethoscope|doctor",
    "teacher in school": r"teacher|school|student",
    "wizard": r"mage|wand",
    "laughing": r"joy|laugh|grin|squinting|rolling on the floor",
    "weeping": r"cry|tear",
    "furious": r"angry|enraged|pouting|anger|rage",
    "in love": r"heart|love|kiss",
    "present": r"gift",
    "footwear": r"shoe|boot|sandal|heel|flop",
    "spectacles": r"glasses|goggles",
    "violinist": r"violin|music",
    "soccer": r"soccer",
    "lightning bolt": r"voltage|lightning|thunder",
    "rainstorm": r"rain|storm|thunder",
    "snow man": r"snowman",
    "moonlight": r"moon|night",
    "blossom": r"blossom|flower|hibiscus|tulip|rose",
    "conifer": r"evergreen|tree",
    "chilli": r"pepper",
    "corncob": r"corn",
}
