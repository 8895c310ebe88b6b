"""Pictures inside the terminal, where it can show them: kitty, iTerm2 and sixel, told by the environment."""

from __future__ import annotations

import os
from base64 import standard_b64encode
from collections.abc import Mapping
from typing import Literal

import numpy as np
from PIL import Image

from imagewright.pictures import encode

Protocol = Literal["kitty", "iterm2", "sixel"]
_KITTY = ("kitty", "ghostty")
_SIXEL = ("mlterm", "foot", "contour", "yaft", "sixel")
_CHUNK = 4096  # kitty's limit for one escape code
MAX_SIDE = 512  # pixels; larger pictures are shown smaller


def protocol(environment: Mapping[str, str] = os.environ) -> Protocol | None:
    """How this terminal shows pictures, or None. Inside tmux and screen nothing is assumed."""
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if environment.get("TMUX") or term.startswith(("screen", "tmux")):
        return None
    if "KITTY_WINDOW_ID" in environment or any(name in (term + program).lower() for name in _KITTY):
        return "kitty"
    if program in ("iTerm.app", "WezTerm") or environment.get("LC_TERMINAL") == "iTerm2":
        return "iterm2"
    return "sixel" if any(name in term for name in _SIXEL) else None


def render(image: Image.Image, how: Protocol) -> str:
    """The text that shows `image` when it is written to the terminal."""
    small = image.copy()
    small.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    if how == "sixel":
        return _sixel(small)
    payload = standard_b64encode(encode(small, "png")).decode()
    if how == "iterm2":
        return f"\x1b]1337;File=inline=1;preserveAspectRatio=1:{payload}\a\n"
    chunks = [payload[start : start + _CHUNK] for start in range(0, len(payload), _CHUNK)]
    codes = []
    for index, chunk in enumerate(chunks):
        head = "a=T,f=100," if index == 0 else ""
        codes.append(f"\x1b_G{head}m={int(index < len(chunks) - 1)};{chunk}\x1b\\")
    return "".join(codes) + "\n"


def _sixel(image: Image.Image) -> str:
    """Six rows at a time: for each colour a line of characters whose bits say which of the six have it."""
    rgba = image.convert("RGBA")
    clear = np.asarray(rgba)[..., 3] < 128  # (H, W)
    paletted = rgba.convert("RGB").quantize(255)
    indices = np.asarray(paletted, np.int16)  # (H, W)
    indices = np.where(clear, -1, indices)
    palette = np.asarray(paletted.getpalette() or [], np.int64).reshape(-1, 3)
    colours = [f"#{i};2;{';'.join(str(round(v * 100 / 255)) for v in rgb)}" for i, rgb in enumerate(palette)]
    bands = []
    for top in range(0, image.height, 6):
        band = indices[top : top + 6]  # (<= 6, W)
        bits = 1 << np.arange(len(band))[:, None]
        lines = []
        for colour in np.unique(band[band >= 0]):
            row = ((band == colour) * bits).sum(0) + 63  # (W,)
            lines.append(f"#{colour}{bytes(row.astype(np.uint8)).decode()}")
        bands.append("$".join(lines))
    return f'\x1bP0;1q"1;1;{image.width};{image.height}{"".join(colours)}{"-".join(bands)}\x1b\\\n'
