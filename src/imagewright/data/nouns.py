"""The things that scenes are made of: concrete, nameable, one to a picture, with a plural and an article."""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    """The entries of a list written as "one | two | three" over several lines."""
    return frozenset(" ".join(entry.split()) for entry in text.split("|"))


SUBGROUPS = _words("""
    animal-mammal | animal-bird | animal-amphibian | animal-reptile | animal-marine | animal-bug |
    plant-flower | plant-other | food-fruit | food-vegetable | food-prepared | food-asian | food-sweet |
    drink | dishware | place-building | place-other | transport-ground | transport-water | transport-air |
    time | sky-weather | event | award-medal | sport | game | arts-crafts | clothing | sound | music |
    musical-instrument | phone | computer | light-video | book-paper | money | mail | writing | office |
    lock | tool | science | medical | household | other-object
""")

# more than one thing, a mass, a place, a mark, a kind of another one, or a name that a picture does not show
EXCLUDED = _words("""
    guide dog | service dog | black cat | pig nose | paw prints | two-hump camel | hatching chick |
    black bird | wing | phoenix | dodo | spouting whale | coral | cricket | fly | microbe | bouquet |
    cherry blossom | white flower | rosette | wilted flower | blossom | herb | fallen leaf | empty nest |
    leafless tree | grapes | green apple | cherries | blueberries | leafy green | garlic | peanuts | beans
    | ginger root | brown mushroom | root vegetable | bread | flatbread | pancakes | bacon | french fries
    | stuffed flatbread | falafel | cooking | fondue | canned food | green salad | popcorn | butter | salt
    | cooked rice | curry rice | steaming bowl | spaghetti | oden | sushi | dango | shaved ice | candy |
    custard | hot beverage | sake | clinking glasses | pouring liquid | beverage box | mate | ice |
    chopsticks | stadium | building construction | rock | wood | houses | derelict house | love hotel |
    wedding | foggy | cityscape | sunrise | sunset | hot springs | station | metro | light rail | monorail
    | mountain railway | oncoming bus | oncoming taxi | oncoming automobile | motorway | railway track |
    stop sign | construction | airplane departure | airplane arrival | small airplane | seat | bus stop |
    suspension railway | mountain cableway | aerial tramway | new moon | full moon | glowing star |
    shooting star | milky way | fog | wind face | cyclone | rainbow | high voltage | water wave |
    hourglass done | fireworks | sparkles | sparkler | tanabata tree | passenger ship | pine decoration |
    Japanese dolls | admission tickets | tennis | bowling | cricket game | field hockey | ice hockey |
    lacrosse | ping pong | badminton | goal net | skis | spade suit | heart suit | diamond suit |
    club suit | joker | nesting dolls | mirror ball | performing arts | framed picture | thread | knot |
    glasses | sunglasses | goggles | jeans | gloves | socks | briefs | shorts | bikini | headphone |
    woman’s clothes | shopping bags | ballet shoes | prayer beads | hair pick | muted speaker |
    musical score | musical note | musical notes | level slider | control knobs | musical keyboard |
    maracas | low battery | computer disk | optical disk | dvd | film frames | open book | green book |
    blue book | orange book | books | ledger | rolled-up newspaper | bookmark tabs | label | coin |
    yen banknote | dollar banknote | euro banknote | pound banknote | e-mail | incoming envelope |
    outbox tray | inbox tray | memo | tear-off calendar | spiral notepad | spiral calendar | card index |
    chart increasing | chart decreasing | bar chart | round pushpin | linked paperclips | scissors |
    locked | unlocked | old key | crossed swords | balance scale | link | red envelope | broken chain |
    chains | satellite antenna | dna | x-ray | elevator | mirror | window | shower | soap | bubbles |
    cigarette | hamsa | moai | placard | identification card | mouse trap | running shirt |
    telephone receiver | black nib | closed umbrella | military medal | tropical drink | railway car |
    speedboat | ship | white cane | high-speed train | tram car | trolleybus | minibus | pea pod |
    moon cake | reminder ribbon | confetti ball | carp streamer | fire engine | lotion bottle | diya lamp
    | fishing pole | Tokyo tower | thong sandal | broccoli
""")

RENAMED = {
    "red apple": "apple",
    "automobile": "car",
    "lady beetle": "ladybug",
    "honeybee": "bee",
    "closed book": "book",
    "articulated lorry": "lorry",
    "hot pepper": "chili pepper",
    "alembic": "glass flask",
    "man’s shoe": "shoe",
    "woman’s sandal": "high-heeled sandal",
    "woman’s boot": "boot",
    "woman’s hat": "sun hat",
    "yarn": "ball of yarn",
    "baguette bread": "baguette",
    "gem stone": "gemstone",
    "kiwi fruit": "kiwi",
    "pick": "pickaxe",
    "billed cap": "cap",
    "poultry leg": "chicken leg",
    "ring buoy": "life buoy",
    "one-piece swimsuit": "swimsuit",
    "adhesive bandage": "bandage",
}
COUNTLESS = _words("sun | fire | tornado | ringed planet | crescent moon | ribbon")
COLOURS_FIXED = _words(  # what would be no such thing in another colour, or has many
    "panda | zebra | tiger | fire | Christmas tree | video game | newspaper | artist palette"
)
IRREGULAR = {
    "mouse": "mice",
    "computer mouse": "computer mice",
    "wolf": "wolves",
    "goose": "geese",
    "ox": "oxen",
    "maple leaf": "maple leaves",
    "kitchen knife": "kitchen knives",
    "scarf": "scarves",
    "cactus": "cacti",
    "potato": "potatoes",
    "tomato": "tomatoes",
    "mango": "mangoes",
    "snowman": "snowmen",
    "ball of yarn": "balls of yarn",
    "game die": "game dice",
}
UNCHANGED = ("fish", "sheep", "deer", "bison", "squid", "shrimp", "moose")
NUMBERS = {2: "two", 3: "three", 4: "four"}


def noun(label: str, subgroup: str) -> str | None:
    """What a scene calls this sticker; None where it is not fit for one."""
    if subgroup not in SUBGROUPS or label in EXCLUDED or len(label.split()) > 2:
        return None
    if "o’clock" in label or label.endswith("-thirty"):
        return None
    return RENAMED.get(label, label)


def plural(name: str) -> str:
    """The plural of a noun of the list."""
    if name in IRREGULAR:
        return IRREGULAR[name]
    if name.endswith(UNCHANGED):
        return name
    if name.endswith("y") and name[-2] not in "aeiou":
        return f"{name[:-1]}ies"
    return f"{name}es" if name.endswith(("s", "x", "z", "ch", "sh")) else f"{name}s"
