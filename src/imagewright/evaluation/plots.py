"""Small line plots, as SVG text for pages and as PIL pictures, from one description and without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Protocol

from PIL import Image, ImageDraw, ImageFont

Point = tuple[float, float]
COLOURS = ("#1c7ed6", "#e8590c", "#2f9e44", "#ae3ec9", "#c92a2a", "#0c8599")  # seen on white and on black
WIDTH, HEIGHT = 380, 280
LEFT, RIGHT, TOP, BOTTOM = 52, 20, 66, 40
HEADROOM = 0.08  # share of the height that is free above the highest and below the lowest point
GREY = "#888888"


@dataclass(frozen=True)
class Series:
    """A named line through `points`; `dots` are drawn as well, each with its (short) label if there are `labels`."""

    name: str
    points: Sequence[Point]
    dots: bool = False
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class Plot:
    """`title`, the axes' names, and what is drawn. `y_range`: (low, high), None: what the points span. Points outside
    lie on the border."""

    title: str
    x: str
    y: str
    series: Sequence[Series]
    log_x: bool = False
    y_range: tuple[float, float] | None = None


class Canvas(Protocol):
    """What a plot is drawn on, in units of WIDTH x HEIGHT."""

    def line(self, points: Sequence[Point], colour: str, thin: bool = False) -> None:
        """A line through points."""

    def dot(self, at: Point, colour: str) -> None:
        """A filled disc."""

    def text(self, at: Point, text: str, anchor: str, colour: str | None = None) -> None:
        """One line; `at` is its baseline, at the start, middle or end of the text. No colour: the page's own."""


class Svg:
    """Collects the elements of an SVG; text has the colour of the page around it."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def line(self, points: Sequence[Point], colour: str, thin: bool = False) -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        style = 'stroke-width="0.5" opacity="0.5"' if thin else 'stroke-width="1.8"'
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" {style}/>')

    def dot(self, at: Point, colour: str) -> None:
        self.parts.append(f'<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="3.5" fill="{colour}"/>')

    def text(self, at: Point, text: str, anchor: str, colour: str | None = None) -> None:
        place = f'x="{at[0]:.1f}" y="{at[1]:.1f}" text-anchor="{anchor}" fill="{colour or "currentColor"}"'
        self.parts.append(f"<text {place}>{escape(text)}</text>")


class Raster:
    """Draws on a white picture, `scale` pixels a unit."""

    def __init__(self, scale: int = 2) -> None:
        self.scale = scale
        self.page = Image.new("RGB", (WIDTH * scale, HEIGHT * scale), "white")
        self._draw = ImageDraw.Draw(self.page)
        self._font = ImageFont.load_default(size=11 * scale)

    def line(self, points: Sequence[Point], colour: str, thin: bool = False) -> None:
        scaled = [(x * self.scale, y * self.scale) for x, y in points]
        self._draw.line(scaled, fill="#dddddd" if thin else colour, width=1 if thin else 2 * self.scale, joint="curve")

    def dot(self, at: Point, colour: str) -> None:
        x, y, r = at[0] * self.scale, at[1] * self.scale, 3.5 * self.scale
        self._draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)

    def text(self, at: Point, text: str, anchor: str, colour: str | None = None) -> None:
        side = {"start": "ls", "middle": "ms", "end": "rs"}[anchor]
        place = (at[0] * self.scale, at[1] * self.scale)
        self._draw.text(place, text, fill=colour or "#222222", font=self._font, anchor=side)


def svg(plot: Plot) -> str:
    """The plot as an <svg> element that grows with its container."""
    canvas = Svg()
    draw(plot, canvas)
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-size="11" font-family="inherit">'
    return "\n".join([head, f"<title>{escape(plot.title)}</title>", *canvas.parts, "</svg>"])


def picture(plot: Plot, scale: int = 2) -> Image.Image:
    """The plot as an RGB picture on white."""
    canvas = Raster(scale)
    draw(plot, canvas)
    return canvas.page


def draw(plot: Plot, canvas: Canvas) -> None:
    """Title, legend, axes with ticks, lines and dots."""
    points = [point for series in plot.series for point in series.points]
    if not points:
        raise ValueError(f"nothing to plot: {plot.title}")
    across = _scale([x for x, _ in points], LEFT, WIDTH - RIGHT, plot.log_x)
    heights = list(plot.y_range) if plot.y_range else _with_room([y for _, y in points])
    down = _scale(heights, HEIGHT - BOTTOM, TOP, False)
    canvas.text((LEFT, 15), plot.title, "start")
    _axes(plot, canvas, across, down)
    colours = [COLOURS[index % len(COLOURS)] for index in range(len(plot.series))]
    _legend([series.name for series in plot.series], colours, canvas)
    for series, colour in zip(plot.series, colours, strict=True):
        placed = [(across.place(x), down.place(y)) for x, y in series.points]
        if len(placed) > 1:
            canvas.line(placed, colour)
        if series.dots:
            _dots(placed, series.labels, colour, canvas)


def _legend(names: Sequence[str], colours: Sequence[str], canvas: Canvas) -> None:
    """The names in their colours, in as many lines as they need."""
    x, y = float(LEFT), 30.0
    for name, colour in zip(names, colours, strict=True):
        width = 6.2 * len(name)
        if x > LEFT and x + width > WIDTH:
            x, y = float(LEFT), y + 13
        canvas.text((x, y), name, "start", colour)
        x += width + 14


def _dots(placed: Sequence[Point], labels: Sequence[str], colour: str, canvas: Canvas) -> None:
    for index, (x, y) in enumerate(placed):
        canvas.dot((x, y), colour)
        if index < len(labels):
            canvas.text((x + 6, y - 6), labels[index], "start", colour)


def _with_room(values: Sequence[float]) -> list[float]:
    room = HEADROOM * (max(values) - min(values))
    return [min(values) - room, max(values) + room]


@dataclass(frozen=True)
class _Scale:
    place: Callable[[float], float]
    ticks: Sequence[float]


def _scale(values: Sequence[float], start: float, end: float, log: bool) -> _Scale:
    """From values to units between `start` and `end`; values outside their own span lie on the border."""
    low, high = min(values), max(values)
    if log:
        low, high = low / 1.3, high * 1.3
    elif low == high:
        low, high = low - 0.5, high + 0.5
    bend = math.log10 if log else float
    first, last = bend(low), bend(high)

    def place(value: float) -> float:
        share = (bend(value) - first) / (last - first)
        return start + min(1.0, max(0.0, share)) * (end - start)

    return _Scale(place, log_ticks(low, high) if log else ticks(low, high))


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers in [low, high], about so many."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((power * factor for factor in (1, 2, 5, 10)), key=lambda size: abs(size - raw))
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten in [low, high]."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [round(factor * 10.0**power, 12) for power in powers for factor in (1, 2, 5)]
    return [value for value in found if low <= value <= high]


def _axes(plot: Plot, canvas: Canvas, across: _Scale, down: _Scale) -> None:
    for tick in down.ticks:
        y = down.place(tick)
        canvas.line([(LEFT, y), (WIDTH - RIGHT, y)], GREY, thin=True)
        canvas.text((LEFT - 5, y + 4), number(tick), "end")
    for tick in across.ticks:
        x = across.place(tick)
        canvas.line([(x, TOP), (x, HEIGHT - BOTTOM)], GREY, thin=True)
        canvas.text((x, HEIGHT - BOTTOM + 14), number(tick), "middle")
    canvas.text(((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8), plot.x, "middle")
    canvas.text((4, TOP - 9), plot.y, "start")


def number(value: float) -> str:
    """A short form: 12k, 0.05, 3."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:g}"
