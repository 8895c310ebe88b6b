"""A captioned folder as a source of training batches: of pixels, or of latents computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from imagewright.data.batch import STYLES, Batch, Draws, TextTokens
from imagewright.data.loader import CaptionedFolder
from imagewright.data.splits import TRAIN
from imagewright.models.encoders import KLLatents
from imagewright.text import Tokenizer

ENCODE_ROWS = 256


class PixelSource:
    """Pixels, captions and styles of a folder at `size` pixels; a step is a pure function of (seed, step)."""

    def __init__(self, folder: CaptionedFolder, size: int, tokenizer: Tokenizer, scenes_share: float = 0.3) -> None:
        self.folder, self.size, self.tokenizer, self.scenes_share = folder, size, tokenizer, scenes_share
        self.manifest_hash = folder.manifest
        trained = {record.get("style") for record in folder.records if record["split"] == TRAIN}
        self.styles = {style: index for index, style in enumerate(STYLES) if style in trained}

    def batch(self, seed: int, step: int, start: int, stop: int, total: int) -> Batch:
        """Rows [start, stop) of the global batch of a step."""
        rows = self.folder.indices(seed, step, total, start, stop, scenes_share=self.scenes_share)
        captions = self.folder.captions(seed, step, rows, start)
        return self._batch(rows, captions, Draws(seed, step, start, stop, total))

    def heldout(self, start: int, stop: int, seed: int) -> Batch | None:
        """Held-out rows [start, stop) under their labels; None beyond the last."""
        rows = self.folder.heldout(stop, seed)[start:]
        if not len(rows):
            return None
        captions = [self.folder.records[i]["text"] for i in rows]
        return self._batch(rows, captions, Draws(seed, 0, start, start + len(rows), start + len(rows)))

    def _batch(self, rows: np.ndarray, captions: list[str], draws: Draws) -> Batch:
        return Batch(
            draws=draws,
            text=tokenize(self.tokenizer, captions),
            style=self.folder.styles(rows),
            captions=tuple(captions),
            **self._pictures(rows),
        )

    def _pictures(self, rows: np.ndarray) -> dict[str, Tensor]:
        return {"pixels": self.folder.pixels(rows, self.size)}


class LatentSource(PixelSource):
    """As PixelSource, with each picture's latents read from `cache` instead of computed at every step."""

    def __init__(
        self, folder: CaptionedFolder, size: int, tokenizer: Tokenizer, cache: Path, scenes_share: float = 0.3
    ) -> None:
        super().__init__(folder, size, tokenizer, scenes_share)
        with safe_open(str(cache), framework="pt") as file:
            self.latents = file.get_tensor("latents")

    def _pictures(self, rows: np.ndarray) -> dict[str, Tensor]:
        return {"latents": self.latents[torch.from_numpy(rows)].float()}


def tokenize(tokenizer: Tokenizer, captions: Sequence[str]) -> TextTokens:
    """Captions as tensors, cut to the longest of them (the padding behind it changes nothing)."""
    ids, grams, mask, _ = tokenizer.encode(captions)
    longest = int(mask.sum(1).max())
    return TextTokens(*(torch.from_numpy(array[:, :longest]) for array in (ids, grams, mask)))


@torch.no_grad()
def cache_latents(
    encoder: KLLatents,
    folder: CaptionedFolder,
    size: int,
    out: Path,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Fit the encoder's mean and std to the folder's latents and write them, normalised, as float16 below `out`.

    The file's name holds a hash of the autoencoder's weights and the data's manifest; an existing one is kept.
    """
    weights = hashlib.sha256(folder.manifest.encode())
    for name, tensor in sorted(encoder.autoencoder.state_dict().items()):
        weights.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    path = out / f"latents-{weights.hexdigest()[:16]}.safetensors"
    if not path.exists():
        raw = torch.empty(len(folder), *encoder.shape)
        device = next(encoder.parameters()).device
        for start in range(0, len(folder), ENCODE_ROWS):
            rows = np.arange(start, min(start + ENCODE_ROWS, len(folder)))
            with torch.autocast(device.type, torch.bfloat16):
                raw[rows] = encoder.autoencoder.encode(folder.pixels(rows, size).to(device)).float().cpu()
            if progress is not None:
                progress(int(rows[-1]) + 1, len(folder))
        encoder.fit(raw)
        normal = (raw - encoder.mean.cpu()) / encoder.std.cpu()
        out.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file({"latents": normal.half(), "mean": encoder.mean.cpu(), "std": encoder.std.cpu()}, str(partial))
        partial.replace(path)
    with safe_open(str(path), framework="pt") as file:
        encoder.mean.copy_(file.get_tensor("mean"))
        encoder.std.copy_(file.get_tensor("std"))
    return path
