"""Which pictures are trained on, by rules that anyone can recompute from a manifest.

Style hold-out: a (style, base) pair whose hash is divisible by 20 is never trained on, in any tone or gender.
Unseen style: all of OpenMoji. Unseen pairs: object pairs that no training scene shows.
"""

from __future__ import annotations

import hashlib

TRAIN = "train"
STYLE_HOLDOUT = "style_holdout"
UNSEEN_STYLE = "unseen_style"
UNSEEN_PAIRS = "unseen_pairs"
DROPPED = "dropped"
HOLDOUT = "holdout"
RULES = {
    STYLE_HOLDOUT: 'int(sha256(f"{style}:{base}").hexdigest(), 16) % 20 == 0',
    UNSEEN_STYLE: 'style == "openmoji"',
    UNSEEN_PAIRS: 'int(sha256(f"{a}+{b}").hexdigest(), 16) % 10 == 0; a <= b, bases of objects in a scene',
    HOLDOUT: "int(sha256, 16) % 20 == 0 with the hash of the file; only in a user's own folder",
}


def _number(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest(), 16)


def sticker_split(style: str, base: str) -> str:
    """The split of a sticker from its style and its base concept."""
    if style == "openmoji":
        return UNSEEN_STYLE
    return STYLE_HOLDOUT if _number(f"{style}:{base}") % 20 == 0 else TRAIN


def unseen_pair(one: str, other: str) -> bool:
    """True where these two base concepts never meet in a training scene."""
    a, b = sorted((one, other))
    return _number(f"{a}+{b}") % 10 == 0


def folder_split(sha256: str) -> str:
    """The split of a picture of a user's own folder: 5 % are held out, by the hash of the file."""
    return HOLDOUT if int(sha256, 16) % 20 == 0 else TRAIN
