"""A captioned folder as a source of training batches: of pixels, or of latents or codes computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from imagewright.data.batch import STYLES, Batch, Draws, TextTokens
from imagewright.data.loader import CaptionedFolder, unpacked
from imagewright.data.splits import TRAIN
from imagewright.text import Tokenizer
from imagewright.training.accelerator import fast_bfloat16

ENCODE_ROWS = 256
CONDITIONS = ("text", "class", "none")


class PixelSource:
    """Pixels, captions and styles of a folder at `size` pixels; a step is a pure function of (seed, step).

    `edits_share`: how many rows are pictures that an instruction leads to from another, where the folder has such.
    `condition`: `text` (captions drawn anew each time), `class` (the concept's name alone, and no scenes) or `none`
    (empty captions and no style).
    """

    def __init__(
        self,
        folder: CaptionedFolder,
        size: int,
        tokenizer: Tokenizer,
        scenes_share: float = 0.3,
        condition: str = "text",
        edits_share: float = 0.0,
    ) -> None:
        self.edits_share = edits_share if condition == "text" and folder.has_edits else 0.0
        self.folder, self.size, self.tokenizer = folder, size, tokenizer
        self.condition, self.scenes_share = condition, 0.0 if condition == "class" else scenes_share
        self.manifest_hash = folder.manifest
        trained = {record.get("style") for record in folder.records if record["split"] == TRAIN}
        self.styles = {style: index for index, style in enumerate(STYLES) if style in trained}

    def batch(self, seed: int, step: int, start: int, stop: int, total: int) -> Batch:
        """Rows [start, stop) of the global batch of a step."""
        rows = self.rows(seed, step, start, stop, total)
        told = self.folder.captions(seed, step, rows, start) if self.condition == "text" else self.names(rows)
        return self._batch(rows, told, Draws(seed, step, start, stop, total), step)

    def rows(self, seed: int, step: int, start: int, stop: int, total: int) -> np.ndarray:
        """The pictures of rows [start, stop) of the global batch of a step."""
        shares = {"scenes_share": self.scenes_share, "edits_share": self.edits_share}
        return self.folder.indices(seed, step, total, start, stop, **shares)

    def heldout(self, start: int, stop: int, seed: int) -> Batch | None:
        """Held-out rows [start, stop) under their labels; None beyond the last."""
        rows = self.folder.heldout(stop, seed, scenes=self.condition != "class")[start:]
        if not len(rows):
            return None
        captions = [self.folder.records[i]["text"] for i in rows] if self.condition == "text" else self.names(rows)
        return self._batch(rows, captions, Draws(seed, 0, start, start + len(rows), start + len(rows)))

    def names(self, rows: np.ndarray) -> list[str]:
        """What the pictures are called where captions are not drawn."""
        return [self.folder.concept(i) if self.condition == "class" else "" for i in rows]

    def _batch(self, rows: np.ndarray, captions: list[str], draws: Draws, step: int | None = None) -> Batch:
        return Batch(
            draws=draws,
            text=tokenize(self.tokenizer, captions),
            style=self.style_of(rows),
            captions=tuple(captions),
            step=step,
            **self._pictures(rows),
            **self._before(rows),
        )

    def style_of(self, rows: np.ndarray) -> Tensor:
        """(B,) the styles that pictures are trained under."""
        return self.folder.styles(rows) * (self.condition != "none") * ~self._edited(rows)

    def stored(self) -> Tensor:
        """All pictures (N, ...), as they are kept."""
        return torch.from_numpy(np.array(self.folder.packed(self.size)))

    def shown(self, stored: Tensor) -> dict[str, Tensor]:
        """Some of the `stored` pictures, as a batch holds them."""
        return {"pixels": unpacked(stored)}

    def _edited(self, rows: np.ndarray) -> Tensor:
        """(B,) bool: which rows are told by an instruction; their style is what it says or the picture's own."""
        return torch.from_numpy(self.folder.before[rows] != rows)

    def _before(self, rows: np.ndarray) -> dict[str, Tensor]:
        if not self.edits_share:
            return {}
        (pictures,) = self._pictures(self.folder.before[rows]).values()
        return {"before": pictures, "edited": self._edited(rows)}

    def _pictures(self, rows: np.ndarray) -> dict[str, Tensor]:
        return {"pixels": self.folder.pixels(rows, self.size)}


class LatentSource(PixelSource):
    """As PixelSource, with each picture's latents or codes read from `cache` instead of computed at every step."""

    def __init__(
        self,
        folder: CaptionedFolder,
        size: int,
        tokenizer: Tokenizer,
        cache: Path,
        scenes_share: float = 0.3,
        condition: str = "text",
        edits_share: float = 0.0,
    ) -> None:
        super().__init__(folder, size, tokenizer, scenes_share, condition, edits_share)
        with safe_open(str(cache), framework="pt") as file:
            self.latents: Tensor = file.get_tensor("latents")

    def _pictures(self, rows: np.ndarray) -> dict[str, Tensor]:
        return self.shown(self.latents[torch.from_numpy(rows)])

    def stored(self) -> Tensor:
        """All latents or codes (N, ...)."""
        return self.latents

    def shown(self, stored: Tensor) -> dict[str, Tensor]:
        """Some of the `stored` latents or codes, as a batch holds them."""
        return {"latents": stored.float() if stored.is_floating_point() else stored.long()}


def tokenize(tokenizer: Tokenizer, captions: Sequence[str]) -> TextTokens:
    """Captions as tensors, cut to the longest of them (the padding behind it changes nothing)."""
    ids, grams, mask, _ = tokenizer.encode(captions)
    longest = int(mask.sum(1).max())
    return TextTokens(*(torch.from_numpy(array[:, :longest]) for array in (ids, grams, mask)))


def weights_digest(module: nn.Module, *more: str) -> str:
    """sha256 over the names and values of a module's weights, and further texts before them."""
    digest = hashlib.sha256("".join(more).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def cache_latents(
    encoder: Any,
    folder: CaptionedFolder,
    size: int,
    out: Path,
    progress: Callable[[int, int], None] | None = None,
    *,
    scaled: bool = False,
) -> Path:
    """Write what `encoder` makes of each picture below `out`: normalised latents (N, C, h, w) as float16, after fitting
    the encoder's mean and std to them (unless it is `scaled` already), or codes (N, h, w) as int16.

    The file's name holds a hash of the autoencoder's weights and the data's manifest; an existing one is kept.
    """
    has_scale = hasattr(encoder, "fit")
    hashed = encoder if has_scale and scaled else encoder.autoencoder
    path = out / f"latents-{weights_digest(hashed, folder.manifest)[:16]}.safetensors"
    if not path.exists():
        raw = _encoded(encoder.autoencoder.encode if has_scale else encoder.encode, encoder, folder, size, progress)
        found = {"latents": raw}
        if has_scale:
            if not scaled:
                encoder.fit(raw)
            mean, std = encoder.mean.cpu(), encoder.std.cpu()
            found = {"latents": ((raw - mean) / std).half(), "mean": mean, "std": std}
        out.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file(found, str(partial))
        partial.replace(path)
    if has_scale:
        with safe_open(str(path), framework="pt") as file:
            encoder.mean.copy_(file.get_tensor("mean"))
            encoder.std.copy_(file.get_tensor("std"))
    return path


def _encoded(
    encode: Callable[[Tensor], Tensor],
    encoder: nn.Module,
    folder: CaptionedFolder,
    size: int,
    progress: Callable[[int, int], None] | None,
) -> Tensor:
    """All pictures, encoded: float32, or whole numbers as int16 (int32 where one is larger). Codes are computed in
    float32, because rounding could move one to its neighbour."""
    device = next(encoder.parameters()).device
    raw = torch.empty(0)
    for start in range(0, len(folder), ENCODE_ROWS):
        rows = np.arange(start, min(start + ENCODE_ROWS, len(folder)))
        with torch.autocast(device.type, torch.bfloat16, enabled=hasattr(encoder, "fit") and fast_bfloat16(device)):
            x = encode(folder.pixels(rows, size, device)).cpu()
        if not start:
            raw = torch.empty(len(folder), *x.shape[1:], dtype=torch.float32 if x.is_floating_point() else torch.int32)
        raw[rows] = x.to(raw.dtype)
        if progress is not None:
            progress(int(rows[-1]) + 1, len(folder))
    small = not raw.is_floating_point() and int(raw.max()) < 2**15
    return raw.to(torch.int16) if small else raw
