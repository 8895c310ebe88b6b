"""What the stickers are called: emojibase's labels, tags, groups and tones, and the concept each one
belongs to.

The *base concept* gathers every tone and every gender of one idea. emojibase lists tones under their entry.
Genders, first rule that finds an existing entry:
1. drop the gender sign: `1F3C3-200D-2642` (man running) -> `1F3C3` (person running);
2. a man or woman at the head of a sequence becomes a person: `1F468-200D-1F692` -> `1F9D1-200D-1F692`;
3. couples and families: the entry named by what stands before the colon ("kiss: man, man" -> "kiss");
4. GENDER_PAIRS, for those that Unicode gave unrelated code points (prince, princess -> person with crown).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

GENDER_PAIRS = {
    "1f468": "1f9d1",  # man -> person
    "1f469": "1f9d1",
    "1f466": "1f9d2",  # boy -> child
    "1f467": "1f9d2",
    "1f474": "1f9d3",  # old man -> older person
    "1f475": "1f9d3",
    "1f934": "1fac5",  # prince -> person with crown
    "1f478": "1fac5",
    "1f385": "1f9d1-200d-1f384",  # Santa Claus -> Mx Claus
    "1f936": "1f9d1-200d-1f384",
    "1f57a": "1f483",  # man dancing -> woman dancing; there is no neutral entry
    "1f930": "1fac4",  # pregnant woman -> pregnant person
    "1fac3": "1fac4",
    "1f46b": "1f9d1-200d-1f91d-200d-1f9d1",  # holding hands
    "1f46c": "1f9d1-200d-1f91d-200d-1f9d1",
    "1f46d": "1f9d1-200d-1f91d-200d-1f9d1",
}


@dataclass(frozen=True)
class Name:
    """One emoji: `hexcode` and `base` as emojibase writes them, `tone` 0-5 (0 none) or one a person."""

    hexcode: str
    base: str
    label: str
    tags: tuple[str, ...]
    group: str
    subgroup: str
    tone: int | tuple[int, ...]


def key(hexcode: str) -> str:
    """A hexcode as the icon sets write it: lower case, without variation selectors."""
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")


def read_names(entries: list[dict[str, Any]], groups: dict[str, Any]) -> dict[str, Name]:
    """`data.json` and `groups.json` of emojibase -> names by key, skin tones included."""
    by_key = {key(entry["hexcode"]): entry for entry in entries}
    by_label = {entry["label"]: key(entry["hexcode"]) for entry in entries}
    names = {}
    for own_key, entry in by_key.items():
        base = by_key[base_key(own_key, entry["label"], by_key, by_label)]["hexcode"]
        for form in (entry, *entry.get("skins", ())):
            tone = form.get("tone", 0)
            names[key(form["hexcode"])] = Name(
                hexcode=form["hexcode"],
                base=base,
                label=form["label"],
                tags=tuple(entry.get("tags", ())),
                group=groups["groups"].get(str(entry.get("group")), "none"),
                subgroup=groups["subgroups"].get(str(entry.get("subgroup")), "none"),
                tone=tuple(tone) if isinstance(tone, list) else tone,
            )
    return names


def base_key(own: str, label: str, by_key: dict[str, Any], by_label: dict[str, str]) -> str:
    """The key of the base concept (see the module's docstring for the rules)."""
    signless = own.replace("-200d-2640", "").replace("-200d-2642", "")
    if signless != own and signless in by_key:
        return signless
    head, _, rest = own.partition("-200d-")
    if head in ("1f468", "1f469") and f"1f9d1-200d-{rest}" in by_key:
        return f"1f9d1-200d-{rest}"
    couple = label.partition(":")[0]
    if couple in ("kiss", "couple with heart", "family") and couple in by_label:
        return by_label[couple]
    pair = GENDER_PAIRS.get(own)
    return pair if pair in by_key and pair is not None else own
