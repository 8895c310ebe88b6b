"""How real a picture looks to the critic of a trained GAN, as a share of real pictures that look less real to it.

A critic's logit means something only beside other logits, so it is ranked among those of real held-out pictures under
their own captions, which are kept in realism.json (made by scripts/judges.py). 0.5 is as real as the middle one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagewright.errors import ModelCorruptError, ModelNotFoundError
from imagewright.refine.judge import Floats, fitted
from imagewright.text import Tokenizer
from imagewright.text_encoder import NumpyTextEncoder, shipped

DESCRIPTION = "realism.json"


class Critic:
    """The critic of an exported GAN: `logits(pictures, prompts)`. Raises ModelNotFoundError, ModelCorruptError."""

    def __init__(self, folder: Path, threads: int = 1) -> None:
        try:
            self.description = json.loads((folder / "model.json").read_text("utf-8"))
            self.listed = {part: self.description["files"][f"{part}.onnx"] for part in ("encoder", "critic")}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelNotFoundError(
                f"{folder} holds no GAN with a critic.", "Export one: imagewright export RUN DIR"
            ) from error
        self.folder, self.threads = folder, threads
        self.size: int = self.description["size"][0]
        self.digest: str = self.listed["critic"]["sha256"]
        self._sessions: dict[str, Any] = {}

    def logits(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> Floats:
        """How real each picture looks under its prompt, in no particular style: (N,)."""
        found = [self._logit(picture, prompt) for picture, prompt in zip(pictures, prompts, strict=True)]
        return np.array(found, np.float32)

    def _logit(self, picture: Image.Image, prompt: str) -> float:
        pixels = fitted(picture, self.size).astype(np.float32).transpose(2, 0, 1)[None] / 127.5 - 1  # (1, 4, S, S)
        x = self._session("encoder").run(None, {"pixels": pixels})[0]
        pooled = self._text(*self._tokenizer.encode([prompt])[:3])[1]
        given = {"x": x, "pooled": pooled, "style": np.zeros(1, np.int64)}
        critic = self._session("critic")
        logit = critic.run(None, {i.name: given[i.name] for i in critic.get_inputs()})[0]
        return float(logit.reshape(-1)[0])

    def _session(self, part: str) -> Any:
        if part not in self._sessions:
            import onnxruntime

            path = self.folder.parent / self.listed[part].get("in", self.folder.name) / f"{part}.onnx"
            data = path.read_bytes() if path.is_file() else b""
            if hashlib.sha256(data).hexdigest() != self.listed[part]["sha256"]:
                raise ModelCorruptError(f"{path} is missing or damaged.", "Install the model again.")
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            options.intra_op_num_threads = self.threads
            self._sessions[part] = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        return self._sessions[part]

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer()

    @cached_property
    def _text(self) -> NumpyTextEncoder:
        return NumpyTextEncoder(shipped())


class Realism:
    """A judge for choosing among tries (refine/choose.py). Default: the critic and the reference in the package.

    Raises ModelNotFoundError where there is none, ModelCorruptError where the reference is another critic's."""

    name = "realism"

    def __init__(self, folder: Path | None = None) -> None:
        folder = folder or Path(str(files("imagewright") / "assets" / "judges"))
        try:
            reference = json.loads((folder / DESCRIPTION).read_text("utf-8"))
            self.real: NDArray[np.float32] = np.array(sorted(reference["logits"]), np.float32)
            self.critic = Critic(folder.parent / reference["model"])
            same = reference["critic"] == self.critic.digest
        except FileNotFoundError as error:
            raise ModelNotFoundError(f"There is no judge of realism in {folder}.", "See scripts/judges.py.") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelCorruptError(f"{folder / DESCRIPTION} cannot be read.", "Install the judges again.") from error
        if not same:
            raise ModelCorruptError("The judge of realism was made for another GAN.", "Install the judges again.")

    def score(self, picture: Image.Image, prompt: str) -> float:
        """The share of real pictures that look less real than this one, in [0, 1]."""
        logit = self.critic.logits([picture], [prompt])[0]
        return float(np.searchsorted(self.real, logit, side="right") / len(self.real))


def write_reference(model: Path, pictures: Sequence[Image.Image], captions: Sequence[str], out: Path) -> None:
    """Rank real pictures with the critic of the exported GAN `model`, which lies beside the folder `out`."""
    critic = Critic(model)
    logits = sorted(float(logit) for logit in critic.logits(pictures, captions))
    told = {"model": model.name, "critic": critic.digest, "n": len(logits), "logits": logits}
    (out / DESCRIPTION).write_text(json.dumps(told) + "\n", "utf-8")
