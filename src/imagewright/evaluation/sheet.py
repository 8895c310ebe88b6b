"""Pictures side by side under their captions, as one picture."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

MARGIN, LINES = 6, 2
Picture = Image.Image


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


def matrix(
    rows: Sequence[Sequence[Picture]], row_labels: Sequence[str], column_labels: Sequence[str], cell: int = 128
) -> Picture:
    """An RGB sheet of `rows`, on white: their labels, if any, on the left, column labels (lines of text) on top."""
    font, left = ImageFont.load_default(size=12), 132 if any(row_labels) else MARGIN
    top = 16 * max(label.count("\n") + 1 for label in column_labels) + MARGIN
    step = cell + MARGIN
    page = Image.new("RGB", (left + len(column_labels) * step, top + len(rows) * step + MARGIN), "white")
    draw = ImageDraw.Draw(page)
    for column, label in enumerate(column_labels):
        draw.multiline_text((left + column * step, MARGIN), label, fill=(40, 40, 40), font=font, spacing=3)
    for row, (label, pictures) in enumerate(zip(row_labels, rows, strict=True)):
        y = top + row * step
        draw.multiline_text((MARGIN, y + 4), textwrap.fill(label, 18), fill=(40, 40, 40), font=font, spacing=3)
        for column, picture in enumerate(pictures):
            fitted = picture.convert("RGBA").resize((cell, cell), Image.Resampling.LANCZOS)
            page.paste(fitted, (left + column * step, y), fitted)
    return page
