"""The fixed prompts and their sheet."""

from collections import Counter

from PIL import Image

from imagewright.data.batch import STYLES
from imagewright.evaluation.sheet import LINES, MARGIN, sheet
from imagewright.evaluation.suites import SHEET_64


def test_there_are_64_prompts_of_every_kind() -> None:
    assert len(SHEET_64) == len(set(SHEET_64)) == 64
    kinds = Counter(p.kind for p in SHEET_64)
    assert set(kinds) == {"seen name", "never in a caption", "style", "colour", "count", "position"}
    assert min(kinds.values()) >= 6
    assert {p.style for p in SHEET_64} - {None} <= set(STYLES)


def test_each_picture_stands_in_its_cell_on_white() -> None:
    red, clear = Image.new("RGBA", (10, 10), "red"), Image.new("RGBA", (10, 10))
    page = sheet([red, clear, red], ["one", "two", "three"], columns=2, cell=40)
    row = 40 + MARGIN + LINES * 13
    assert page.size == (2 * (40 + MARGIN) + MARGIN, 2 * row + MARGIN)
    assert page.getpixel((MARGIN + 20, MARGIN + 20)) == (255, 0, 0)
    assert page.getpixel((2 * MARGIN + 60, MARGIN + 20)) == (255, 255, 255)
    assert page.getpixel((MARGIN + 20, MARGIN + row + 20)) == (255, 0, 0)
