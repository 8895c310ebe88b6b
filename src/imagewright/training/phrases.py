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

from imagewright.data.captions import article
from imagewright.data.nouns import plural
from imagewright.data.splits import unseen_pair
from imagewright.errors import DataError

# fmt: off
COLOURS = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray",
    "grey", "golden",
)
NUMBERS = (
    "one", "two", "three", "four", "five",
)
QUALITIES = (
    "big", "small", "tiny", "happy", "sad", "cute", "old", "new", "round", "shiny", "sleepy", "angry",
    "funny",
)
RELATIONS = (
    "to the left of", "to the right of", "above", "below", "next to", "inside", "on top of", "under",
    "behind", "in front of", "and", "with",
)
FORMS = (
    "{}", "a {}", "the {}", "{} emoji", "a cute {}", "a sticker of {}", "an icon of {}",
    "a picture of a {}", "a flat {} icon", "a {}, flat design", "a 3d {}", "a cartoon {}",
    "drawing of {}, simple style", "{} on a white background",
)
# fmt: on
ROLE_SIZES = (len(COLOURS) + 1, len(NUMBERS), 2 * len(RELATIONS) + 1)

SCENE_GROUPS = {0, 3, 4, 5, 6, 7}  # emojibase: smileys, animals, food, travel, activities, objects
HELD_OUT = 32  # one phrase of so many is kept for measuring


Roles = tuple[int, int, int]


@dataclass(frozen=True)
class Phrase:
    """A text and, in scenes, the roles of each word that names a thing (None for the other words):

    its colour (0: not said), its number less one, and its place (0: alone; 2 r + 1 and 2 r + 2: first and
    second in relation r). The order of words tells these, and the teacher says little about them.
    """

    text: str
    roles: tuple[Roles | None, ...] = ()


@dataclass(frozen=True)
class Concept:
    """An emojibase entry: its code points, label, tags and group, and the labels of its skin tones."""

    hexcode: str
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
            entry["hexcode"],
            entry["label"],
            tuple(entry.get("tags", ())),
            entry["group"],
            tuple(skin["label"] for skin in entry.get("skins", ())),
        )
        for entry in entries
        if "group" in entry
    ]


def make_phrases(concepts: Sequence[Concept], words: Sequence[str], seed: int, scenes: int) -> list[Phrase]:
    """Distinct phrases: labels, tags, both, scenes, and `words` (frequent first) alone and in pairs."""
    rng = random.Random(seed)
    objects = [c for c in concepts if c.group in SCENE_GROUPS and len(c.label.split()) <= 2]
    frequent = words[:8000]
    texts = [text for concept in concepts for text in _concept_phrases(concept, rng)]
    texts += words
    texts += [f"{rng.choice(frequent)} {rng.choice(frequent)}" for _ in range(scenes // 4)]
    texts += [f"{rng.choice(COLOURS + QUALITIES)} {rng.choice(frequent)}" for _ in range(scenes // 4)]
    phrases = [Phrase(text) for text in texts] + [_scene(objects, rng) for _ in range(scenes)]
    return list({phrase.text: phrase for phrase in phrases}.values())


def _concept_phrases(concept: Concept, rng: random.Random) -> Iterator[str]:
    yield from (concept.label, *concept.tones, *concept.tags)
    for form in rng.sample(FORMS, 6):
        yield form.format(concept.label)
    for _ in range(min(6, len(concept.tags))):
        some = rng.sample(concept.tags, rng.randint(1, min(4, len(concept.tags))))
        yield ", ".join([concept.label, *some])
        yield rng.choice((", ", " ")).join(some)
        yield rng.choice(FORMS).format(rng.choice(some))


def _scene(objects: Sequence[Concept], rng: random.Random) -> Phrase:
    """One or two things (never a pair that image models are not to see in training), maybe a background."""
    first, second = rng.sample(objects, 2)
    relation = rng.randrange(len(RELATIONS))
    if rng.random() < 0.4 or unseen_pair(first.hexcode, second.hexcode):
        tagged = _thing(first.label, 0, rng)
    else:
        between: list[tuple[str, Roles | None]] = [(word, None) for word in RELATIONS[relation].split()]
        tagged = [
            *_thing(first.label, 2 * relation + 1, rng),
            *between,
            *_thing(second.label, 2 * relation + 2, rng),
        ]
    if rng.random() < 0.25:
        colour = rng.randrange(len(COLOURS))
        tagged += [(word, None) for word in f"on {article(COLOURS[colour])}".split()]
        tagged += [("background", (colour + 1, 0, 0))]
    return Phrase(" ".join(word for word, _ in tagged), tuple(role for _, role in tagged))


def _thing(label: str, place: int, rng: random.Random) -> list[tuple[str, Roles | None]]:
    """The words of "a blue cat" or "three apples", each with its roles."""
    colour = rng.randint(1, len(COLOURS)) if rng.random() < 0.5 else 0
    count = rng.randint(2, len(NUMBERS)) if rng.random() < 0.35 else 1
    quality = rng.choice(QUALITIES) if rng.random() < 0.15 else ""
    adjectives = [word for word in (quality, COLOURS[colour - 1] if colour else "") if word]
    noun = (plural(label) if count > 1 else label).split()
    phrase = " ".join([*adjectives, *noun])
    words = (article(phrase) if count == 1 else f"{NUMBERS[count - 1]} {phrase}").split()
    before: list[tuple[str, Roles | None]] = [(word, None) for word in words[: len(words) - len(noun)]]
    return [*before, *((word, (colour, count - 1, place)) for word in noun)]


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
    """Kept from training: one phrase in HELD_OUT by checksum, and every query of the retrieval test."""
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
