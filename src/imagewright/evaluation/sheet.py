"""Pictures side by side under their captions, as one picture."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

MARGIN, LINES = 6, 2


def sheet(pictures: Sequence[Image.Image], captions: Sequence[str], columns: int = 8, cell: int = 128) -> Image.Image:
    """An RGB sheet of `columns`, each picture fitted into `cell` x `cell` pixels on white, its caption below."""
    font = ImageFont.load_default(size=11)
    step_x, step_y = cell + MARGIN, cell + MARGIN + LINES * 13
    rows = -(-len(pictures) // columns)
    page = Image.new("RGB", (columns * step_x + MARGIN, rows * step_y + MARGIN), "white")
    draw = ImageDraw.Draw(page)
    for index, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        x, y = MARGIN + index % columns * step_x, MARGIN + index // columns * step_y
        fitted = picture.convert("RGBA").resize((cell, cell), Image.Resampling.LANCZOS)
        page.paste(fitted, (x, y), fitted)
        lines = textwrap.wrap(caption, width=max(8, cell // 6))[:LINES]
        draw.multiline_text((x, y + cell), "\n".join(lines), fill=(60, 60, 60), font=font, spacing=1)
    return page
