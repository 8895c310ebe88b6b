"""Pictures inside the terminal."""

from __future__ import annotations

import re
from base64 import standard_b64decode

import numpy as np
import pytest
from PIL import Image

from imagewright import terminal
from imagewright.pictures import open_picture


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"TERM_PROGRAM": "WezTerm"}, "iterm2"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "xterm-kitty", "TMUX": "tmux"}, None),
        ({"TERM": "screen.xterm-kitty"}, None),
        ({"TERM": "xterm-256color"}, None),
        ({}, None),
    ],
)
def test_the_protocol_is_told_by_the_environment(environment: dict[str, str], expected: str | None) -> None:
    assert terminal.protocol(environment) == expected


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 4), np.uint8))


def test_kitty_and_iterm2_carry_the_picture() -> None:
    chunks = re.findall("\x1b_G([^;]*);([^\x1b]*)\x1b\\\\", terminal.render(noise(), "kitty"))
    assert len(chunks) > 1 and chunks[0][0].startswith("a=T,f=100") and chunks[-1][0] == "m=0"
    assert all(len(payload) <= 4096 for _, payload in chunks)
    whole = standard_b64decode("".join(payload for _, payload in chunks))
    assert np.array_equal(np.asarray(open_picture(whole)), np.asarray(noise()))
    iterm = terminal.render(noise(), "iterm2")
    assert standard_b64decode(iterm.partition(":")[2].rstrip("\a\n")) == whole


def test_sixel_draws_every_pixel() -> None:
    colours = np.zeros((13, 9, 4), np.uint8)
    colours[:6, :, 0] = 255
    colours[6:, :, 2] = 255
    colours[..., 3] = 255
    colours[0, 0] = 0  # one clear pixel
    drawn = _decode_sixel(terminal.render(Image.fromarray(colours), "sixel"))
    assert np.array_equal(drawn, colours)


def _decode_sixel(text: str) -> np.ndarray:
    """A small slow decoder: the other side of the protocol."""
    match = re.fullmatch('\x1bP0;1q"1;1;(\\d+);(\\d+)(.*)\x1b\\\\\n', text, re.DOTALL)
    assert match
    picture = np.zeros((int(match[2]), int(match[1]), 4), np.uint8)
    palette: dict[str, list[int]] = {}
    x = y = 0
    colour = ""
    for token in re.finditer(r"#(\d+);2;(\d+);(\d+);(\d+)|#(\d+)|(\$)|(-)|([?-~])", match[3]):
        if token[1]:
            palette[token[1]] = [round(int(token[i]) * 2.55) for i in (2, 3, 4)]
        elif token[5]:
            colour = token[5]
        elif token[6]:
            x = 0
        elif token[7]:
            x, y = 0, y + 6
        else:
            for bit in range(6):
                if (ord(token[8]) - 63) >> bit & 1:
                    picture[y + bit, x] = [*palette[colour], 255]
            x += 1
    return picture


def test_large_pictures_are_shown_smaller() -> None:
    text = terminal.render(Image.new("RGB", (2000, 1000), "red"), "iterm2")
    assert open_picture(standard_b64decode(text.partition(":")[2].rstrip("\a\n"))).size == (512, 256)
