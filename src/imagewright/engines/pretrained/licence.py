"""A model's licence: read off its card, and said before the model's first use on this machine."""

from __future__ import annotations

import json
import re

from platformdirs import user_data_path

from imagewright.engines.engine import ModelInfo
from imagewright.engines.pretrained.sources import Place

UNKNOWN = "unknown: see its page"
_FIELD = re.compile(r"^(license(?:_name)?):[ \t]*[\"']?([^\"'\n]+?)[\"']?[ \t]*$", re.MULTILINE)


def read(place: Place) -> str:
    """The licence that the front matter of the model's README.md names, or UNKNOWN."""
    card = (place.path.parent if place.single else place.path) / "README.md"
    try:
        head = card.read_text("utf-8", errors="replace")[:20_000]
    except OSError:
        return UNKNOWN
    if not head.startswith("---"):
        return UNKNOWN
    fields: dict[str, str] = dict(_FIELD.findall(head[3:].partition("\n---")[0]))
    named = fields.get("license", "other")
    return fields.get("license_name", UNKNOWN) if named == "other" else named


def notice(model: ModelInfo) -> str | None:
    """What to say before the first use of a model here; None where it was said before."""
    file = user_data_path("imagewright") / "licences.json"
    try:
        seen = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        seen = {}
    if not isinstance(seen, dict) or seen.get(model.digest) == model.licence:
        return None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({**seen, model.digest: model.licence}, indent=1), "utf-8")
    except OSError:  # it will be said again
        pass
    return f"{model.name}: licence {model.licence}"
