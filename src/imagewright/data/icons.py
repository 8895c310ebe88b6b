"""One drawing style in iconify's format: code points -> a complete SVG document."""

from __future__ import annotations

from typing import Any

SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{side}" '
    'height="{side}" viewBox="{left} {top} {width} {height}">{body}</svg>'
)


class IconSet:
    """`icons` is iconify's icons.json; `chars` maps code points (lower case, with dashes) to icon names."""

    def __init__(self, icons: dict[str, Any], chars: dict[str, str]) -> None:
        self.chars = chars
        self._icons = icons["icons"]
        self._aliases = icons.get("aliases", {})
        self._defaults = {"left": 0, "top": 0, "width": 16, "height": 16}
        self._defaults |= {name: icons[name] for name in self._defaults if name in icons}

    def svg(self, key: str) -> str | None:
        """The picture of a code point sequence, centred in a square; None where this set has not drawn it."""
        name = self.chars.get(key)
        icon = self._resolve(name) if name is not None else None
        if icon is None:
            return None
        side = max(icon["width"], icon["height"])
        return SVG.format(side=side, **{**icon, "body": transformed(icon)})

    def _resolve(self, name: str) -> dict[str, Any] | None:
        """The icon with its own or its set's box; an alias adds its flips and turns to its parent's."""
        if name in self._icons:
            return {**self._defaults, **self._icons[name]}
        alias = self._aliases.get(name)
        parent = self._resolve(alias["parent"]) if alias else None
        if alias is None or parent is None:
            return None
        return {
            **parent,
            **{side: alias[side] for side in self._defaults if side in alias},
            "hFlip": parent.get("hFlip", False) != alias.get("hFlip", False),
            "vFlip": parent.get("vFlip", False) != alias.get("vFlip", False),
            "rotate": (parent.get("rotate", 0) + alias.get("rotate", 0)) % 4,
        }


def transformed(icon: dict[str, Any]) -> str:
    """The body, flipped and turned (in quarters, clockwise) inside its own box."""
    left, top, width, height = icon["left"], icon["top"], icon["width"], icon["height"]
    centre_x, centre_y = left + width / 2, top + height / 2
    body: str = icon["body"]
    if icon.get("hFlip") or icon.get("vFlip"):
        x, y = (-1 if icon.get("hFlip") else 1), (-1 if icon.get("vFlip") else 1)
        shift = f"{centre_x * (1 - x)} {centre_y * (1 - y)}"
        body = f'<g transform="translate({shift}) scale({x} {y})">{body}</g>'
    if icon.get("rotate"):
        body = f'<g transform="rotate({90 * icon["rotate"]} {centre_x} {centre_y})">{body}</g>'
    return body
