"""The forms in which people ask for a change of a picture, as patterns for a whole clause; changes.py reads them.

In the rows a word in capitals stands for what PARTS has: THE for the thing that changes, NEW for one that comes.
"""

from __future__ import annotations

import re
from typing import Literal

from imagewright.conversation.words import COLOUR

Kind = Literal["colour", "background", "place", "clear", "replace", "add", "remove", "style", "free"]
SIDE = r"(?:on|at|in|to) the (?:very )?(?:left|right|top|bottom|middle|cent(?:er|re)|corner)(?: (?:side|corner))?"
IT = r"it|him|her|this|that|them|these|they|everything"
ANY = rf"(?:{IT}|its [a-z ]+?|(?:the|my|his|her|their|this|that) [a-z0-9' -]+?)"
SOME = r"(?:an?|some|another|two|three|four|five|six|several|a few|more) .+"
PREPOSITION = r"(?:in front of|on top of|next to|in|on|at|under|over|inside|by|near|into|onto|against)"
ADD = r"(?:add|insert|include|put|place|stick|slap|throw|draw|paint|set|show)"
_ART = (
    *("pixel art", r"watercolou?r(?: painting)?", "oil painting", "pencil (?:sketch|drawing)", "line art", "cartoon"),
    *("anime", "comic", "sketch", "photo(?:graph)?", "mosaic"),
)
PARTS = {
    "THE": rf"(?P<thing>{ANY})",
    "NEW": rf"(?P<value>{SOME})",
    "COLOUR": rf"(?P<value>{COLOUR})",
    "PLACE": rf"(?P<value>{PREPOSITION} (?:an?|the|some|front of) .+)",
    "ART": rf"(?P<value>{'|'.join(_ART)})",
    "STYLE": r"(?P<value>[a-z0-9 -]+?)",
    "PAINT": r"(?:make|turn|paint|colou?r|recolou?r|dye|tint|set|change)",
    "REPLACE": r"(?:replace|swap|exchange|substitute|switch)",
    "REMOVE": r"(?:remove|delete|erase|drop|lose|ditch|scrap|kill|eliminate|hide|clear|get rid of"
    r"|take (?:away|out|off|down)|cut away|cut out)",
    "INSTEAD": r"(?: instead(?: of .+)?)?",
    "SIDE": SIDE,
    "ANY": ANY,
}
_ROWS: dict[Kind, tuple[str, ...]] = {
    "clear": (
        r"REMOVE (?:the |its )?background(?: away)?",
        r"take (?:the |its )?background (?:away|off|out)",
        r"(?:make|turn|set) (?:the background|it|the picture) (?:to be )?(?:transparent|clear|invisible)",
        r"(?:(?:and|but|with|on|give it|it on) )*(?:no|without(?: the| any| a)?|(?:an? )?transparent) background",
        r"(?:the )?background (?:should be|to be|to) transparent",
        r"cut ANY out|cut out ANY|cutout",
    ),
    "background": (
        r"(?:PAINT |let )?(?:the |its )?background(?:'s)?(?: colou?r)?(?: to(?: be)?| be| should be| in)?"
        r" COLOURINSTEAD",
        r"(?:the )?background:? (?:in )?COLOUR",
        r"(?:add|use|have|want|try) (?:an? |the )COLOUR background",
        r"(?:put |place |set |draw |show )?(?:ANY|give ANY)? ?(?:(?:but )?(?:on|with|in front of|against) )?"
        r"(?:a |an |the )?COLOUR backgroundINSTEAD",
    ),
    "place": (
        r"(?:change|set|switch|replace|make) the background (?:to |with |by |into )?(?:be )?(?P<value>(?:an?|the) .+)",
    ),
    "colour": (
        r"PAINT (?:the )?colou?r of THE (?:to |into |be )?COLOUR",
        r"PAINT (?P<its>its|the [a-z -]+'s) colou?r (?:to |into |be )?COLOUR",
        r"PAINT THE (?:to |in |into |be )?(?:an? )?COLOUR(?: colou?r)?INSTEAD",
        r"THE (?:should|must|could|can|shall) be (?:in )?COLOURINSTEAD",
        r"(?:can|could|should|may) THE be (?:in )?COLOURINSTEAD",
        r"THE (?:to be |be |in )?COLOURINSTEAD",
        r"(?:(?:and|but|rather) )*(?:(?:in|to|into) )?(?:the colou?r )?COLOUR(?: instead| colou?red)?",
    ),
    "replace": (
        r"REPLACE THE (?:with|for|by|to|against) (?P<value>.+)",
        r"(?:turn|transform|change|convert|morph) THE (?:into|to|in) NEW",
        r"make THE (?:into )?(?P<value>an? (?!bit |little |lot |tad ).+)",
        r"what if THE (?:was|were) (?P<value>an? .+)",
        r"THE should be (?P<value>an? .+)",
        r"(?:make |draw |use |have |with )?NEW instead of THE",
        r"NEW,? not THE",
        r"NEW,? not an? (?P<thing>[a-z -]+)",
        r"(?P<value>[a-z]+(?: [a-z]+)?) instead(?: of THE)?",
        r"(?:make |draw |use |have |with |rather )?NEW instead",
    ),
    "add": (
        r"(?:give|let) THE (?:have )?NEW",
        r"(?:could|can|may|should) THE (?:have|wear|get) NEW",
        r"(?:could|can) there be NEW",
        r"(?P<needs>needs) NEW",
        r"THE (?:needs|should have|should wear|could use|could have|wants|must have|gets) NEW",
        r"(?:also |and )?(?:add|insert|include) (?P<value>.+)",
        r"(?:there should be|i want|let there be|have) NEW",
        r"(?:but |and )?with NEW",
        rf"(?P<value>{SOME} SIDE)",
    ),
    "remove": (
        r"REMOVE (?P<thing>ANY|.+)",
        r"i (?:don't|do not) (?:want|like|need) (?P<thing>the .+)",
        r"(?P<thing>(?:the )?[a-z]+) off",
        r"take THE (?:away|off|out|down)",
        r"(?:but )?(?:without|no|no more|not) (?:the |any |an? )?(?P<bare>[a-z -]+)",
    ),
    "style": (
        r"(?:as|in|make it(?: look like)?|change the style to|turn it into|convert it to|redraw it (?:as|in))"
        r" (?:an? |the )?STYLE(?: style| art style)",
        r"(?:change|switch|set) the style to (?:an? |the )?STYLE(?: style)?",
        r"(?:as|like|make it|turn it into|redraw it as) (?:an? |some )?ART",
    ),
}
_LAST: tuple[tuple[Kind, str], ...] = (  # where none of the others fits
    ("place", r"(?:put|place|set|move|show|draw) THE PLACE"),
    ("place", r"(?:but )?PLACE"),
)


_NAMES = re.compile("|".join(sorted(PARTS, key=len, reverse=True)))


def _compiled(form: str) -> re.Pattern[str]:
    return re.compile(f"^(?:{_NAMES.sub(lambda found: PARTS[found[0]], form)})$", re.IGNORECASE)


FORMS: tuple[tuple[Kind, re.Pattern[str]], ...] = tuple(
    (kind, _compiled(form))
    for kind, form in (
        *((kind, form) for kind, rows in _ROWS.items() if kind != "style" for form in rows),
        *_LAST,
        *(("style", form) for form in _ROWS["style"]),
    )
)
VERBS = frozenset(  # of changes that are read by none of the forms
    (
        *("make", "let", "change", "turn", "put", "move", "rotate", "flip", "mirror", "open", "close", "give", "take"),
        *("swap", "tilt", "shift", "shrink", "grow", "stretch", "fix", "improve", "sharpen", "blur", "brighten"),
        *("darken", "lighten", "soften", "have", "keep", "bring", "raise", "lower", "push", "pull", "place", "set"),
        *("add", "remove", "cover", "fill", "replace", "lift", "spin", "straighten", "tidy", "clean"),
    )
)
SURFACES = frozenset(  # one is on them; elsewhere, in
    (
        *("beach", "moon", "table", "grass", "street", "road", "mountain", "hill", "roof", "island", "carpet"),
        *("floor", "lawn", "meadow", "boat", "ship", "stage", "farm", "planet"),
    )
)
