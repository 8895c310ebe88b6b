"""The set phrases of a conversation about pictures: back, again, more, larger, which one, what is it, thank you.

Each is a few rows of alternatives, matched against a whole clause unless it says otherwise.
"""

from __future__ import annotations

import re

from imagewright.conversation.words import COLOUR, NUMBER, ORDINALS, PICTURE

I = re.IGNORECASE


def whole(*rows: str) -> re.Pattern[str]:
    """A clause that is one of these."""
    return re.compile(rf"^(?:{'|'.join(rows)})$", I)


def opening(*rows: str) -> re.Pattern[str]:
    """A clause that begins with one of these."""
    return re.compile(rf"^(?:{'|'.join(rows)})", I)


SHORT = {  # as people type
    "pls": "please", "plz": "please", "u": "you", "ur": "your", "wanna": "want to", "gimme": "give me",
    "lemme": "let me", "gonna": "going to", "w/o": "without", "bg": "background", "pic": "picture", "pics": "pictures",
    "thx": "thanks", "ty": "thanks", "smth": "something", "wats": "what's", "whats": "what's", "dont": "don't",
    "im": "i'm", "hd": "higher resolution", "res": "resolution", "nah": "no", "nope": "no", "cant": "can't",
}  # fmt: skip
_FILLERS = (
    *("hi", "hey", "hello", "ok", "okay", "well", "great", "nice", "cool", "perfect", "please", "now", "then", "next"),
    *("also", "and", "so", "alright", "right", "thanks", "thank you", "good", "hm+", "u+m+", "oh", "yes", "yeah"),
    *("sure", "actually", "just", "lol", "haha", "wow", "but first", "let's", "lets", "rather", "ideally"),
)
POLITE = opening(
    rf"(?:(?:{'|'.join(_FILLERS)})\b[,!.:; ]+)+(?=\S)",
    r"(?:can|could|would|will) (?:you|we|i)(?: please)?(?: just)?(?: be so (?:kind|nice) (?:as )?to)?"
    r"(?: (?:try|have|get))?(?: to)? ",
    r"i(?:'d| would| really)?(?: rather)? (?:like|love|want|need|prefer)(?: you)?(?: to)?(?: (?:see|have|get))? ",
    r"i'd rather (?:have|see) ",
    r"(?:i'm |i am )?looking for |need ",
    r"(?:please|kindly|how about|what about|let's (?:start with|try|have|do)|start with|try to|go ahead and) ",
)
TAIL = re.compile(
    r"[\s,]*(?:\b(?:please|thanks|thank you|for me|if you can|if possible|lol|now|a (?:bit|little))\b|[.!?])+$",
    I,
)
DRAW = opening(
    r"(?:re)?(?:draw|paint|create|generate|make|show|give|imagine|sketch|render|design|produce|do)(?: me)? "
    r"(?=[a-z0-9]+\b)"
)
NEW = re.compile(
    r"^(?:forget (?:that|it|about (?:that|it))|start (?:over|again|anew)|something (?:else|new|different)"
    rf"|an?(?:other)? (?:new |different |fresh )?{PICTURE}"
    r"|(?:draw|make|show|do|paint)(?: me)? something(?: [a-z]+)?(?=:)"
    rf"|draw something (?:new|else|different)|(?:a )?new (?:one|{PICTURE}|scene)|next(?: one| {PICTURE})?)"
    r"(?:,? this time)?(?::|,| with| -| of| showing| and)?\s+(?P<rest>\S.*)$",
    I,
)
ANOTHER = opening(rf"(?:{NUMBER}|an?|another) (?:new |different )*{PICTURE} (?:of|with) ")
_STEMS = (
    *("make", "turn", "paint", "colou?r", "recolou?r", "change", "set", "replace", "swap", "exchange", "add", "put"),
    *("place", "give", "remove", "delete", "erase", "take", "get rid", "undo", "redo", "draw", "upscale", "enlarge"),
    *("zoom", "extend", "expand", "cut", "let", "show", "use", "go back", "rotate", "flip", "move", "insert"),
)
SPLIT = re.compile(
    r"\s*(?:;|[.!?] |,? and then |,? then |,? and also |,? and |, )\s*"
    rf"(?=(?:please )?(?:{'|'.join(_STEMS)})\b)",
    I,
)
ELLIPSIS = whole(rf"(?P<verb>make|turn|paint|colou?r) (?P<first>.+? {COLOUR}),? and (?P<second>the .+? {COLOUR})")

# which picture
_NTH = "|".join(ORDINALS)
_WHICH = rf"{_NTH}|last|previous|original|latest|earlier|old|other"
REFERENCE = (
    rf"(?:(?:(?:the|that|this) )?(?:very )?(?:{_WHICH}) (?:ones?|{PICTURE})"
    rf"|(?:the )?(?:(?:picture|image|photo|version|number|no\.) ?#?|#)(?:\d{{1,4}}|{NUMBER})\b"
    rf"|(?:the|that) (?:{PICTURE}|one) (?:with|of) (?:an? |the )?[a-z]+(?: [a-z]+)?"
    r"|the (?!left|right|top|bottom|upper|lower|middle)[a-z]+ (?:picture|image|one|drawing))"
)
BACK = (
    r"(?:(?:let's |please )?(?:go|take me|come|get|switch|move|step)? ?back to|go to|return to|revert to|restore"
    r"|bring back|show(?: me)?(?: again)?)"
)
_CHOOSE = (
    r"(?:use|take|choose|pick|open|keep|let's (?:use|take|keep)|i (?:prefer|like|choose|want|pick|take)|prefer|select"
    r"|continue with|edit|work on)"
)
GO = whole(
    rf"(?:(?:{BACK}|{_CHOOSE}) )?(?P<to>{REFERENCE}|(?:the )?(?:{_NTH}|original|beginning|start))"
    r"(?: again| back| more| better)*"
)
GO_THING = whole(rf"{BACK} (?P<to>the [a-z ]+)")
GO_AND = whole(rf"{BACK} (?P<to>.+?),? (?:and|but) (?P<rest>.+)")
BARE = whole(r"#?(?P<n>\d{1,3})")
CHOSEN = whole(rf"(?:{_CHOOSE}|in|with|on|from|for) {REFERENCE}")
FROM = whole(
    rf"(?:(?:{_CHOOSE}|in|with|on|from|for) )?(?P<to>{REFERENCE})(?:,| but| and|:|, but)* (?P<rest>\S.*)",
)
INSIDE = re.compile(rf"(?P<to>{REFERENCE})", I)
SAME = whole(
    r"(?:the )?same(?: (?:thing|one|picture|image|again|(?!(?:in|with|on|as|but|without)\b)[a-z]+))?,?"
    r" (?:but |only |again,? but )?(?P<rest>(?:in|with|on|without|as|but|no|an?|#?[a-z-]+ ?).*)"
)
AGAIN_BUT = whole(r"(?P<to>the [a-z ]+?) again,?(?: but)? (?P<rest>.+)")

# back and forth
_BAD = r"(?:no+|eww*|ugh|meh|bad|wrong|yuck)[,.! ]*"
UNDO = whole(
    r"(?:undo|revert|roll ?back|rewind)(?: (?:that|it|this|the last (?:one|change|edit|step)|the change))?",
    r"(?:go|take|step|one step|go one step|take one step) back(?: (?:one|a) step)?|back|go back one",
    r"take (?:that|it) back|(?:cancel|reverse|discard) (?:that|it|this)|never ?mind(?: that)?",
    rf"(?:{_BAD})*not (?:that|this|like that|good)|(?:{_BAD})+",
    r"that'?s (?:wrong|not (?:it|right|good|what i (?:want(?:ed)?|meant)))|that was (?:wrong|better before)",
    r"i (?:don'?t|do not) like (?:it|that|this)",
    r"(?:i (?:liked|preferred) (?:it|that) (?:better|more)|it was (?:better|nicer)|that was (?:better|nicer)) before",
    r"go back to (?:how|what) it was(?: before)?",
    r"(?:i (?:liked|preferred) )?(?:the )?(?:previous|earlier|old) (?:one|version|picture)"
    r"(?: (?:was|is|looked))? (?:better|nicer|more)",
    rf"(?:undo|go back|revert|take back)(?: the last)? (?P<n>twice|{NUMBER})(?: (?:steps?|times|changes|edits))?",
)
REDO = whole(
    r"redo(?: (?:that|it))?|undo the undo|un-?undo|bring (?:it|that) back|(?:go )?forward|put it back|do it after all"
)
ORIGIN = whole(
    r"start (?:over|again|from scratch|anew)|(?:go |take me )?back to the (?:original|beginning|start)|reset(?: it)?",
    r"(?:undo|revert) (?:all|everything)(?: of it)?",
)
FORGET = whole(r"(?:no,? )?(?:forget (?:it|that|about (?:it|that))|never ?mind)")

# again, more
AGAIN = whole(
    r"(?:try|do|draw|make|repeat)(?: (?:it|that|this|the same))? (?:again|once more|over|anew|another time)|again",
    r"once (?:more|again)|another (?:try|attempt|go)|(?:have|give it) another (?:go|try)|one more time|retry",
    r"(?:repeat|redraw|regenerate)(?: (?:that|it))?",
)
_ASK = r"(?:(?:give|show|make|draw|do|create|generate)(?: me)? )?"
MORE = whole(
    rf"{_ASK}(?:(?P<n>{NUMBER}|\d+|an?|another|some|one)\b ?)?(?:(?:a )?different |new )?"
    r"(?P<many>more|others?|variations?|variants?|versions?|alternatives?)?(?: (?:ones?|pictures?|images?|versions?))?"
    r"(?: (?:of|like|similar to|for) (?:it|this|that|them|these|those|this one|that one|the same))?(?: again)?"
)
MANY = re.compile(r"variations|variants|alternatives|versions", I)
LIKE_THIS = whole(
    r"(?:a )?different one",
    rf"{_ASK}(?:more |something |another(?: one)? |one |an? (?:picture|image) )?"
    r"(?:(?:like|similar to) (?:this|that|it|these)|similar)(?: one)?",
    r"(?:vary|make variations of|variations? of|a variation (?:of|on)) (?:it|this|that|the picture)",
)
OF_THEM = whole(rf"(?:make |draw |give me |i want )?(?P<n>{NUMBER}) of (?:them|these|those|it|this|that)")

# sizes
_IT = r"(?:it|this|that|the (?:whole )?(?:picture|image|canvas|thing|resolution))"
_BIT = r"(?:a (?:bit|lot|little) )?"
_TIMES = r"(?:two|four|2|4|three|3|8|eight)"
LARGER = whole(
    rf"(?:(?:make|turn|have) {_IT} |it |the picture )?{_BIT}(?:bigger|larger|higher resolution"
    rf"|(?:(?P<n>{_TIMES}) times|twice|double) (?:as (?:big|large)|bigger|larger|the size))",
    r"(?:in |at )?higher resolution|make (?:it|this|that) (?:in )?high resolution",
    rf"(?:upscale|enlarge|double|upsize|scale up|blow up)(?: (?:{_IT}|the size))?(?: up)?"
    r"(?: (?:by )?(?P<by>two|four|2|4)(?: ?x| times)?| (?P<x>[24])x)?",
)
FOUR = ("4", "four", "3", "three", "8", "eight")
OUT = whole(rf"zoom (?:it )?(?:further )?out(?: (?P<n>\d(?:\.\d+)?)(?:x| times))?(?: {_BIT.strip()})?")
WIDER = whole(
    rf"(?:(?:make|have) {_IT} )?{_BIT}(?P<how>wider|wide|taller|tall|higher|landscape|portrait|panoramic|square)"
    r"(?: format)?"
)
_SIDE = r"left|right|top|bottom|up|down|upwards?|downwards?|both sides|sides|all sides|around"
SPACE = whole(
    r"(?:(?:add|give it|make|leave)(?: some| more| a bit of)* (?:space|room|margin)"
    rf"|(?:extend|expand|grow|widen|continue|outpaint)(?: (?:{_IT}|the scene))?(?: (?:further|more))?)"
    rf"(?: (?:to|on|at|towards)? ?(?:the )?(?P<side>{_SIDE})(?: side)?| (?P<all>around it|on all sides))?"
)
TO_SIZE = whole(rf"(?:(?:make|have|scale|resize|set) {_IT}(?: to)?|it|resize|scale)?")

# styles
STYLE_ONLY = whole(
    r"(?:make|redraw|draw|paint|render|do|show|turn|change|have|want|try|put)?"
    rf" ?(?:{_IT}|the same(?: (?:thing|picture))?|same(?: (?:thing|picture))?)?(?: (?:look|drawn|again|but|into|to))*",
    r"(?:change|switch|set) the style(?: to)?|style",
)
TO_STYLE = whole(r"(?:change|switch|set) the style to (?P<style>[a-z0-9 ]+?)(?: style)?")
LIKE = re.compile(
    r",? ?(?:\b(?:make|redraw|draw|have) (?:it|this|that)(?: look)? )?"
    r"(?:(?:in|with|using|of) the (?:same )?style(?: (?:as|of|like))? |(?:look )?(?:just )?like )"
    rf"(?P<to>{REFERENCE}|before|it|that|the others?)$|,? ?in the same style(?: again)?$",
    I,
)

# corrections
_BEGINS = r"the|i|make|it|rather|in|try|again|draw|another|do|put|give"
NO = whole(rf"(?:no|sorry|wait|wrong)\b(?:[,!.:;]+ ?| (?=(?:{_BEGINS})\b))(?P<rest>\S.*)")
SAID = whole(r"i (?:meant|mean|said|wanted|asked for|was talking about) (?P<rest>\S.*)")
NOT_BUT = whole(r"(?:no,? )?not (?:the|a|an) [a-z ]+?(?:,| but)+ (?P<rest>(?:the|an?) \S.*)")
SIDE_ONLY = whole(
    r"(?:the )?(?:one (?:on|at) the )?(?P<where>left|right|top|bottom|upper|lower)(?:most)?(?: one| side)?"
)
SIDES = {"upper": "top", "lower": "bottom"}

# questions
ABOUT = opening(
    r"(?:what(?:'s| is| are|s)? (?:in|on|the|this|that|it|shown|there|you)|what (?:do|can) you see"
    r"|what(?:'s| is) (?:this|that|it)|what (?:does|did) (?:it|the|this)|describe|what colou?r|which colou?r|how many"
    r"|is there|are there|is (?:it|this|that|the)|can you see|do you see|who is|where is|what kind"
    r"|tell me what(?:'s| is))\b"
)
ASKED = opening(
    r"(?:help|what can (?:you|i)|who are you|what are you|how do|how does|how can|which (?:models?|styles?)"
    r"|what (?:styles?|models?|sizes?|formats?)|why|are you|do you|commands)\b"
)
_THANKS = (
    *("lol", "haha", "great", "nice", "perfect", "cool", "ok", "okay", "wow", "good", "lovely", "beautiful", "awesome"),
    *("thanks?(?: you)?(?: (?:very|so) much| a lot)?", "well done", "yes", "hi", "hello", "hey"),
    *("that's (?:it|great|nice|good|perfect)", "i (?:like|love) (?:it|that|this)"),
)
THANKS = whole(rf"(?:(?:{'|'.join(_THANKS)})[,.! ]*)+")
LOOKS = whole(r"(?:show me )?what (?P<rest>an? .+?) looks? like")
NOUN_PHRASE = opening(rf"(?:an?|the|some|my|{NUMBER}) ")


def typed(words: str) -> str:
    """One line, with short forms written out."""
    return " ".join(SHORT.get(word.lower(), word) for word in words.split())


def plain(text: str) -> str:
    """Words without politeness: "could you please draw a cat?" -> "draw a cat"."""
    before = None
    text = text.strip()
    while text and text != before:
        before = text
        text = POLITE.sub("", TAIL.sub("", text), count=1).strip()
    return text or (before or "")
