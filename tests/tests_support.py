"""Small data that several tests train on."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from PIL import Image, ImageDraw

from imagewright.data.batch import STYLES, Batch, Draws
from imagewright.text import Tokenizer
from imagewright.training.sources import tokenize

COLOURS = {"red": (1.0, 0.1, 0.1), "green": (0.1, 0.8, 0.1), "blue": (0.1, 0.2, 1.0)}


class DiscsSource:
    """Premultiplied coloured discs (B, 4, size, size) with true captions; a pure function of (seed, step)."""

    manifest_hash = "discs"
    styles: ClassVar[dict[str, int]] = {"noto": STYLES.index("noto")}

    def __init__(self, size: int) -> None:
        self.size, self.tokenizer = size, Tokenizer()

    def batch(self, seed: int, step: int, start: int, stop: int, total: int) -> Batch:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        which = torch.randint(len(COLOURS), (total,), generator=generator)[start:stop]
        centre = (0.3 + 0.4 * torch.rand(total, 2, 1, 1, generator=generator))[start:stop] * self.size
        y, x = torch.meshgrid(torch.arange(self.size), torch.arange(self.size), indexing="ij")
        near = (y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2 < (self.size / 4) ** 2
        alpha = near.float()[:, None]  # (B, 1, size, size)
        rgb = torch.tensor(list(COLOURS.values()))[which][:, :, None, None]
        captions = [f"a {list(COLOURS)[i]} disc" for i in which]
        return Batch(
            Draws(seed, step, start, stop, total),
            pixels=torch.cat([alpha * rgb, alpha], dim=1) * 2 - 1,
            text=tokenize(self.tokenizer, captions),
            style=torch.full((stop - start,), STYLES.index("noto")),
            captions=tuple(captions),
        )

    def heldout(self, start: int, stop: int, seed: int) -> Batch | None:
        return None if start else self.batch(seed + 1, 0, 0, min(stop, 32), min(stop, 32))


def discs_source(size: int) -> DiscsSource:
    return DiscsSource(size)


def discs_and_squares(out: Path) -> Path:
    """Fill a folder with forty discs and squares named by what they show."""
    for i in range(40):
        picture = Image.new("RGBA", (48, 48))
        draw = ImageDraw.Draw(picture)
        colour = ("red", "green", "blue", "orange")[i % 4]
        shape = (draw.ellipse, draw.rectangle)[i % 2]
        shape((4 + i // 4, 6, 30 + i // 4, 40), fill=colour)
        picture.save(out / f"{colour}_{('disc', 'square')[i % 2]}-{i:02d}.png")
    return out
