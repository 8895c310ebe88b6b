"""Fixed prompts, so that two models, or two versions of one, can be compared by eye."""

from __future__ import annotations

from dataclasses import dataclass

STYLES = ("noto", "fluent", "flat", "twemoji")


@dataclass(frozen=True)
class SheetPrompt:
    """One cell of a sheet: what to ask for, and which ability it shows."""

    kind: str
    prompt: str
    style: str | None = None


def _of(kind: str, *prompts: str) -> list[SheetPrompt]:
    return [SheetPrompt(kind, prompt) for prompt in prompts]


SHEET_64: tuple[SheetPrompt, ...] = (
    *_of(
        "seen name",
        "red apple", "cat face", "dog face", "fox", "tiger face", "elephant", "penguin", "octopus",
        "butterfly", "sunflower", "rose", "cactus", "banana", "pizza", "hamburger", "birthday cake",
        "rocket", "airplane", "bicycle", "fire engine", "house", "alarm clock", "guitar", "umbrella",
    ),
    *_of(
        "never in a caption",
        "puppy", "bunny", "automobile", "feline", "xmas tree", "a cup of hot cocoa", "big ship", "warm mittens",
        "angry person", "grand piano keys", "stormy weather", "a small village",
    ),
    *(SheetPrompt("style", prompt, style) for prompt in ("rocket", "owl") for style in STYLES),
    *_of(
        "colour",
        "a blue cat", "a purple frog", "a green car", "a yellow umbrella", "a pink elephant", "a black rose",
        "an orange fish", "a red bird",
    ),
    *_of(
        "count",
        "two bananas", "three red apples", "four dogs", "two blue stars", "three mushrooms", "four yellow flowers",
    ),
    *_of(
        "position",
        "a fox to the left of a tree", "a cat above a car", "a dog to the right of a house",
        "an apple below a banana", "a frog on a yellow background", "a rocket on a black background",
    ),
)  # fmt: skip

FIRST_8: tuple[SheetPrompt, ...] = tuple(
    _of(
        "first look",
        "red apple", "cat face", "fire engine", "sunflower",
        "smiling face with sunglasses", "a blue cat", "three red apples", "a rocket on a black background",
    )
)  # fmt: skip

COMPARE_24: tuple[SheetPrompt, ...] = tuple(
    prompt for kind in dict.fromkeys(p.kind for p in SHEET_64) for prompt in [p for p in SHEET_64 if p.kind == kind][:4]
)  # four of each kind
