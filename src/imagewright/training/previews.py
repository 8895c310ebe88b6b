"""The sheets of pictures that a run shows of itself."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path

import torch
from PIL import Image

from imagewright.models.technique import Cond, Prompted, Technique
from imagewright.training.observe import Preview
from imagewright.training.sources import PixelSource

PROMPTS = (
    "red apple", "cat face", "dog", "rocket", "pizza", "house", "sunflower", "fire engine",
    "smiling face with sunglasses", "a blue cat", "three red apples", "a fox to the left of a tree",
)  # fmt: skip


def preview_of(technique: Technique, source: PixelSource) -> Preview | None:
    """Pictures of fixed prompts, or of an autoencoder or tokenizer what it makes of held-out pictures."""
    if technique.family:
        return _samples(source, isinstance(technique, Prompted))
    return _reconstructions(source) if hasattr(technique, "reconstruct") else None


def _samples(source: PixelSource, prompted: bool) -> Preview:
    """Fixed prompts, once in no particular style and once in the data's styles by turns; without words, fixed seeds."""
    count = len(PROMPTS)
    if prompted and source.condition != "none":
        styles = list(source.styles.values()) or [0]
        cond = Cond(PROMPTS * 2, [0] * count + list(islice(cycle(styles), count)))
        seeds = [0] * 2 * count
    else:
        cond = Cond([""] * 2 * count, [0] * 2 * count)
        seeds = list(range(2 * count))

    def preview(technique: Technique, step: int, path: Path) -> None:
        grid(technique.sample(cond, seeds).cpu(), count).save(path)

    return preview


def _reconstructions(source: PixelSource) -> Preview:
    batch = source.heldout(0, 32, 0) or source.batch(0, 0, 0, 32, 32)

    def preview(technique: Technique, step: int, path: Path) -> None:
        assert batch.pixels is not None
        pixels = batch.pixels.to(next(technique.parameters()).device)
        reconstruct: Callable[[torch.Tensor], torch.Tensor] = technique.reconstruct  # type: ignore[assignment]
        restored = reconstruct(pixels).float()
        grid(torch.stack([pixels, restored], dim=1).flatten(0, 1).cpu(), 8).save(path)

    return preview


def grid(pictures: torch.Tensor, columns: int) -> Image.Image:
    """Pictures (B, 4, H, W), premultiplied RGBA in [-1, 1], side by side on white."""
    rgba = (pictures.clamp(-1, 1) + 1) / 2
    rgb = rgba[:, :3] + (1 - rgba[:, 3:])  # (B, 3, H, W)
    B, _, H, W = rgb.shape
    rows = -(-B // columns)
    sheet = torch.ones(3, rows * H, columns * W)
    for i, picture in enumerate(rgb):
        y, x = divmod(i, columns)
        sheet[:, y * H : (y + 1) * H, x * W : (x + 1) * W] = picture
    return Image.fromarray((sheet.permute(1, 2, 0).clamp(0, 1) * 255).round().byte().numpy())
