"""From a request to the arguments of a pipeline's call, by the names in that call's own signature."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any

import numpy as np
from PIL import Image

from imagewright.engines.engine import STRENGTH
from imagewright.engines.pretrained.describe import Description, control_class, parameters
from imagewright.errors import UnsupportedError
from imagewright.request import Adjustment, ImageRequest
from imagewright.resampling import resize

NEGATIVE = 2.0  # true guidance for a negative prompt on models that are guided by a number of their own (FLUX)

Size = tuple[int, int]


def size_for(request: ImageRequest, found: Description) -> tuple[Size, list[Adjustment]]:
    """The size at which the model draws, and an Adjustment where the picture is resampled from another area."""
    assert request.size is not None
    width, height = request.size
    native = found.native[0] * found.native[1]
    share = width * height / native
    least, most = found.areas
    factor = 1.0 if least <= share <= most else sqrt(1 / share)
    drawn = (_multiple(factor * width, found.step), _multiple(factor * height, found.step))
    if factor == 1.0:
        return drawn, []
    said = f"drawn at {drawn[0]}x{drawn[1]}, about the area this model was trained at, and resampled"
    return drawn, [Adjustment("size", request.size, drawn, said)]


def _multiple(side: float, step: int) -> int:
    return max(step, round(side / step) * step)


def verb_of(request: ImageRequest, found: Description) -> str:
    """ "text", "image", "mask" or "instruction". Raises UnsupportedError where the model does not know it."""
    if request.mask is not None:
        wanted = "mask"
    elif request.instruction or (request.images and "instruction" in found.verbs):
        wanted = "instruction"
    else:
        wanted = "text" if request.image is None else "image"
    if wanted in found.verbs:
        return wanted
    if "mask" in found.verbs and wanted in ("text", "image"):
        return "mask"  # with a hole as large as the picture
    if wanted == "image" and "instruction" in found.verbs:
        raise UnsupportedError(
            "This model takes a picture with words that say what to change.",
            "Use imagewright edit, or instruction=True.",
        )
    said = {"text": "make a picture from words alone", "mask": "honour a mask"}.get(wanted, "change a picture so")
    raise UnsupportedError(f"This model cannot {said}.", f"It knows: {', '.join(found.verbs)}.")


def kind_for(request: ImageRequest, verb: str, found: Description) -> Any:
    """The pipeline class for the request. Raises UnsupportedError where there is none with ControlNets."""
    kind = found.verbs[verb]
    if not request.controls:
        return kind
    controlled = control_class(kind)
    if controlled is None:
        raise UnsupportedError("diffusers has no ControlNet for this use of this model.", "Leave out the control.")
    return controlled


def arguments(request: ImageRequest, verb: str, kind: Any, size: Size) -> tuple[dict[str, Any], list[Adjustment]]:
    """All arguments but the words, the generator and the callback; only those that the call takes."""
    takes = parameters(kind)
    given: dict[str, Any] = {
        "width": size[0],
        "height": size[1],
        "max_area": size[0] * size[1],  # these three: the pipeline's own idea of the size would override ours
        "_auto_resize": False,
        "use_resolution_binning": False,
        "num_inference_steps": request.num_inference_steps,
        **_guidance(request, takes),
        **_pictures(request, verb, size),
    }
    said: list[Adjustment] = []
    if "strength" in takes and verb in ("image", "mask"):
        given["strength"], said = _strength(request, verb)
    if request.controls:
        images = [resize(one.image.convert("RGB"), size) for one in request.controls]
        weights = [one.weight for one in request.controls]
        single = len(images) == 1
        name = "control_image" if "control_image" in takes else "image"
        given[name] = images[0] if single else images
        given["controlnet_conditioning_scale"] = weights[0] if single else weights
    return {name: value for name, value in given.items() if name in takes and value is not None}, said


def _guidance(request: ImageRequest, takes: set[str]) -> Mapping[str, Any]:
    """`guidance_scale`; `true_cfg_scale` where that is what a negative prompt works through."""
    if "true_cfg_scale" not in takes:
        return {"guidance_scale": request.guidance_scale}
    if "guidance_scale" not in takes or request.guidance_scale is None:
        return {"true_cfg_scale": request.guidance_scale}
    return {"guidance_scale": request.guidance_scale, "true_cfg_scale": NEGATIVE if request.negative_prompt else 1.0}


def _pictures(request: ImageRequest, verb: str, size: Size) -> Mapping[str, Any]:
    if verb == "text":
        return {}
    pictures = [picture.convert("RGB") for picture in (request.image, *request.images) if picture is not None]
    if verb == "instruction":
        first = [resize(pictures[0], size)] if request.image is not None else pictures[:1]
        every = [*first, *pictures[1:]]
        return {"image": every[0] if len(every) == 1 else every}
    image = resize(pictures[0], size) if pictures else Image.new("RGB", size, "grey")
    if verb == "image":
        return {"image": image}
    return {"image": image, "mask_image": hole(request.mask, size)}


def hole(mask: Image.Image | None, size: Size) -> Image.Image:
    """diffusers' mask, white where the picture may change, of OpenAI's, transparent there; None: all of it."""
    if mask is None:
        return Image.new("L", size, 255)
    opaque = np.asarray(mask.convert("RGBA").getchannel("A"))
    white = Image.fromarray(np.where(opaque < 255, 255, 0).astype(np.uint8), "L")
    return white.resize(size, Image.Resampling.NEAREST)


def _strength(request: ImageRequest, verb: str) -> tuple[float, list[Adjustment]]:
    """At least one step must be left to do; diffusers does round(steps * strength) of them."""
    default = 1.0 if verb == "mask" else STRENGTH
    strength = default if request.strength is None else request.strength
    steps = request.num_inference_steps or 1
    least = 1 / steps
    if int(steps * strength) >= 1:
        return strength, []
    return least, [Adjustment("strength", strength, round(least, 3), f"of {steps} steps at least one is done")]
