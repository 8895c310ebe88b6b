"""The record of a picture: what made it, as plain JSON, enough to make it again.

Version 1 holds what the engine wrote (software, engine, model, model_digest, prompt, seed, steps,
adjustments, ...) and what was done afterwards (refine steps, background, format). It never holds a path or
a user's name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from PIL import Image

from imagewright.errors import PictureError
from imagewright.request import Adjustment, Emphasis, ImageRequest

VERSION = 1
MAX_LENGTH = 1_000_000  # characters of JSON that are read back
_LOCAL = ("path",)  # what an engine says of this machine
SOURCES = ("image", "images", "style_images", "subject_images", "controls")  # pictures that a request brings along
_REQUEST_FIELDS: dict[str, tuple[type, ...]] = {
    "prompt": (str,),
    "negative_prompt": (str,),
    "style": (str,),
    "seed": (int,),
    "num_inference_steps": (int,),
    "guidance_scale": (int, float),
    "sampler": (str,),
    "temperature": (int, float),
    "top_k": (int,),
    "top_p": (int, float),
    "truncation": (int, float),
    "emphasis": (list,),
    "variety": (int, float),
    "weird": (int, float),
    "stop": (int, float),
    "tile": (bool,),
    "quality": (str,),
    "background": (str,),
    "output_format": (str,),
    "output_compression": (int,),
}


def plain(adjustments: Iterable[Adjustment]) -> list[dict[str, Any]]:
    """Adjustments as JSON values."""
    return [asdict(adjustment) for adjustment in adjustments]


def finish(
    made: Mapping[str, Any], request: ImageRequest, image: Image.Image, steps: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The engine's record with the request's output fields, the finished size and the refine steps."""
    record = {
        "version": VERSION,
        **{name: value for name, value in made.items() if name not in _LOCAL},
        "background": request.background,
        "quality": request.quality,
        "output_format": request.output_format,
        "output_compression": request.output_compression,
        "size": list(image.size),
        "refine": [dict(step) for step in steps],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    plain_record: dict[str, Any] = json.loads(to_json(record))  # what a file will give back
    return plain_record


def of_tool(of_model: bool, **facts: Any) -> dict[str, Any]:
    """The record of a picture that was changed without a model: `facts` and the fields that every record has.

    `of_model`: the picture before was of one.
    """
    from imagewright import __version__

    return {
        "version": VERSION,
        "software": f"imagewright {__version__}",
        "engine": None,
        "model": None,
        "of_model": of_model,
        "prompt": "",
        "seed": None,
        "background": "auto",
        "output_format": "png",
        "output_compression": 100,
        "adjustments": [],
        "refine": [],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **facts,
    }


def source_type(record: Mapping[str, Any]) -> str:
    """IPTC's word: made by a trained model, from a given picture with a trained model's help, or without one."""
    if record.get("of_model", True) is False:
        return "algorithmicallyEnhanced"
    return "compositeWithTrainedAlgorithmicMedia" if _made_from(record) else "trainedAlgorithmicMedia"


def _made_from(record: Mapping[str, Any]) -> list[str]:
    """The names under which a record has the digests of the pictures that it was made from."""
    return [name for name in SOURCES if f"{name}_sha256" in record]


def to_json(record: Mapping[str, Any]) -> str:
    """One line of ASCII JSON, safe inside every container. Raises ValueError on NaN."""
    return json.dumps(record, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def from_json(text: str) -> dict[str, Any] | None:
    """The record in `text`, or None where it is not one that this version can read."""
    if len(text) > MAX_LENGTH:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and value.get("version") == VERSION else None


def shortened(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with its prompts cut to 2,000 characters each, and without its edits, marked, for containers with
    little room."""
    cut = {name: str(record.get(name) or "")[:2000] for name in ("prompt", "negative_prompt")}
    long = ("emphasis", "prompt_template", "prompt_choices", "edits")
    kept = {name: value for name, value in record.items() if name not in long}
    return {**kept, **cut, "adjustments": [], "shortened": True}


def to_request(record: Mapping[str, Any]) -> ImageRequest:
    """The request that makes the picture of `record` again (without its model, which the caller finds).

    Raises PictureError where the record cannot be one of ours or needs pictures that it does not hold.
    """
    if _made_from(record):
        raise PictureError("This picture was made from another picture.", "Make it again with that one at hand.")
    if "shortened" in record:
        raise PictureError("The prompt was too long for this file; only its start is kept.", "Use PNG.")
    fields = {name: record[name] for name in _REQUEST_FIELDS if record.get(name) is not None}
    size = _pair(record.get("size"))
    whole = all(isinstance(value, _REQUEST_FIELDS[name]) for name, value in fields.items())
    if size is None or not whole or "prompt" not in fields:
        raise PictureError("The record in this picture is damaged.", "Use the original file.")
    if "emphasis" in fields:
        fields["emphasis"] = _spans(fields["emphasis"])
    return ImageRequest(**fields, size=size)


def _pair(value: object) -> tuple[int, int] | None:
    match value:
        case [int(width), int(height)]:
            return width, height
    return None


def _spans(parts: list[Any]) -> tuple[Emphasis, ...]:
    """The weighted parts of a prompt, as JSON lists them. Raises PictureError."""
    kinds = [[type(value) for value in part] if isinstance(part, list) else [] for part in parts]
    if any(kind not in ([int, int, int], [int, int, float]) for kind in kinds):
        raise PictureError("The record in this picture is damaged.", "Use the original file.")
    return tuple((start, end, weight) for start, end, weight in parts)


def parameters(record: Mapping[str, Any]) -> str:
    """The record as the text that other image tools read: prompt, negative prompt, `Key: value` pairs."""
    pairs = {
        "Steps": record.get("num_inference_steps"),
        "Sampler": record.get("sampler"),
        "CFG scale": record.get("guidance_scale"),
        "Seed": record.get("seed"),
        "Size": "x".join(str(side) for side in record["size"]),
        "Model": record.get("model"),
        "Model hash": str(record.get("model_digest", ""))[:10] or None,
        "Version": record.get("software"),
    }
    lines = [record["prompt"]]
    if record.get("negative_prompt"):
        lines.append(f"Negative prompt: {record['negative_prompt']}")
    lines.append(", ".join(f"{key}: {value}" for key, value in pairs.items() if value is not None))
    return re.sub(r"[\x00\ud800-\udfff]", "\ufffd", "\n".join(lines))
