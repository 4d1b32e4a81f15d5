"""Which drawings stand for which class noun, and the other words of the captions.

The drawings' names are *listed*, never searched for: a speech balloon is no balloon, a computer
mouse no mouse, a teddy bear no bear.
"""

from __future__ import annotations

NOUNS: dict[str, str] = {
    # animals
    "dog": "dog dog-face guide-dog service-dog poodle dogside",
    "cat": "cat cat-face black-cat catside grinning-cat grinning-cat-face "
    "smiling-cat-face-with-open-mouth",
    "fox": "fox fox-face fox-face-1 fox-face-2 foxsmiling",
    "bear": "bear bear-face polar-bear",
    "panda": "panda panda-face pandaface",
    "lion": "lion lion-face",
    "tiger": "tiger tiger-face tigerside",
    "cow": "cow cow-face cowface",
    "pig": "pig pig-face pigside",
    "monkey": "monkey monkey-face monkeyface",
    "rabbit": "rabbit rabbit-face",
    "mouse": "mouse mouse-face mouseside rat",
    "horse": "horse horse-face horseface",
    "elephant": "elephant",
    "koala": "koala",
    "unicorn": "unicorn unicorn-face",
    "sheep": "ewe ewe-1 ewe-2 sheep",
    "whale": "whale spouting-whale spurtingwhale",
    "dolphin": "dolphin",
    "octopus": "octopus",
    "fish": "fish tropical-fish tropicalfish",
    "penguin": "penguin penguin-1 penguin-2",
    "chicken": "chicken rooster",
    "bird": "bird bird-1 bird-2 parrot",
    "duck": "duck",
    "owl": "owl",
    "frog": "frog frog-face",
    "turtle": "turtle",
    "snake": "snake",
    "snail": "snail",
    "crab": "crab",
    "butterfly": "butterfly monarch-butterfly",
    "bee": "honeybee",
    # food
    "apple": "red-apple green-apple redapple greenapple",
    "banana": "banana",
    "strawberry": "strawberry strawberry-1 strawberry-2",
    "pineapple": "pineapple",
    "watermelon": "watermelon watermelon-1 watermelon-2",
    "lemon": "lemon",
    "cherry": "cherries",
    "grapes": "grapes",
    "mushroom": "mushroom brown-mushroom",
    "pizza": "pizza pizza-1 pizza-2 sliceofpizza",
    "hamburger": "hamburger hamburger-1 hamburger-2 hamburger-3",
    "donut": "doughnut doughnut-1 doughnut-2",
    "cake": "birthday-cake birthday-cake-1 birthday-cake-2 birthday-cake-3 birthdaycake "
    "shortcake shortcake-1 shortcake-2",
    # vehicles
    "car": "automobile taxi sport-utility-vehicle oncoming-automobile oncomingautomobile "
    "oncoming-taxi oncomingtaxi",
    "bus": "bus oncoming-bus oncomingbus",
    "bicycle": "bicycle",
    "truck": "delivery-truck pickup-truck deliverytruck articulated-lorry articulatedlorry",
    "train": "locomotive steamlocomotive train oncomingtrain",
    "tractor": "tractor",
    "rocket": "rocket",
    "airplane": "airplane small-airplane",
    "helicopter": "helicopter",
    "sailboat": "sailboat",
    # things
    "house": "house house-with-garden housebuilding housewithgarden",
    "backpack": "backpack school-backpack",
    "teapot": "teapot",
    "cup": "teacup-without-handle hot-beverage hot-beverage-1 hot-beverage-2 teacupwithouthandle",
    "bowl": "steaming-bowl bowl-with-spoon steamingbowl",
    "vase": "amphora",
    "candle": "candle",
    "can": "canned-food",
    "clock": "alarm-clock mantelpiece-clock alarmclock",
    "camera": "camera camera-with-flash camerawithflash",
    "guitar": "guitar",
    "sneaker": "running-shoe",
    "boot": "hiking-boot womans-boot boot",
    "hat": "top-hat womans-hat tophat womanshat",
    "sunglasses": "sunglasses darksunglasses",
    "umbrella": "umbrella umbrella-with-rain-drops umbrellawithraindrops",
    "balloon": "balloon",
    "robot": "robot robot-face robot-face-1 robot-face-2 robot-face-3",
    "teddy bear": "teddy-bear",
    "crown": "crown",
    "snowman": "snowman snowman-without-snow snowmanwithoutsnow",
    "flower": "sunflower sunflower-1 sunflower-2 tulip rose blossom daisy hibiscus",
    "cactus": "cactus cactus-1 cactus-2",
    "tree": "deciduous-tree evergreen-tree deciduoustree evergreentree palm-tree palmtree",
}
"""Class noun -> names of its drawings in any of the sets, separated by spaces."""

EXCEPT = {("fxemoji", "sunglasses")}
"""(set, name) of drawings that show another thing than their name says: here a smiling face."""

ALSO: dict[str, str] = {
    "poodle": "poodle",
    "polar-bear": "polar bear",
    "black-cat": "black cat",
    "rooster": "rooster",
    "parrot": "parrot",
    "green-apple": "green apple",
    "red-apple": "red apple",
    "taxi": "taxi",
    "sport-utility-vehicle": "jeep",
    "pickup-truck": "pickup truck",
    "birthday-cake": "birthday cake",
    "alarm-clock": "alarm clock",
    "top-hat": "top hat",
    "tropical-fish": "tropical fish",
    "sunflower": "sunflower",
    "tulip": "tulip",
    "rose": "rose",
    "palm-tree": "palm tree",
}
"""Drawings that have a narrower name of their own, said instead of the noun now and then."""

SYNONYMS: dict[str, str] = {
    "hamburger": "burger",
    "bicycle": "bike",
    "donut": "doughnut",
    "airplane": "plane",
    "sneaker": "shoe",
    "rabbit": "bunny",
    "teddy bear": "stuffed animal",
}
"""Other words people use for a noun."""

SUBJECTS: dict[str, str] = {
    "octopus": "octopus",
    "fox": "fox",
    "cat": "cat",
    "car": "automobile",
    "bird": "bird",
    "dog": "dog",
    "hamburger": "hamburger",
    "rocket": "rocket",
}
"""Class nouns DreamBooth is tried on -> names of the Fluent designs, never trained on."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 42, 42),
    "orange": (245, 140, 30),
    "yellow": (250, 215, 60),
    "green": (70, 165, 70),
    "teal": (45, 165, 175),
    "blue": (50, 90, 215),
    "purple": (135, 65, 190),
    "pink": (245, 150, 190),
    "brown": (125, 80, 45),
    "white": (248, 248, 248),
    "gray": (140, 140, 140),
    "black": (22, 22, 22),
}
"""Named background colours, sRGB 0..255."""

PATTERNS = ("stripes", "dots", "checks")

SCENES: dict[str, tuple[str, ...]] = {
    "grass": ("on the grass", "on grass", "in a meadow"),
    "snow": ("in the snow",),
    "night": ("at night",),
    "beach": ("on the beach", "at the beach"),
    "forest": ("in the forest", "in a forest", "in the jungle"),
    "desert": ("in the desert",),
    "mountains": ("in the mountains", "with a mountain in the background"),
    "city": ("in the city", "with a city in the background"),
    "moon": ("on the moon",),
    "sea": ("under water", "in the sea"),
    "wood": ("on a wooden floor", "on a wooden table"),
    "sunset": ("at sunset",),
}
"""Drawn scenes and the words for them."""

POSITIONS: dict[str, str] = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
}

STYLES: dict[str, tuple[str, ...]] = {
    "noto": ("a shaded drawing of",),
    "noto-v1": ("a shaded drawing of",),
    "twemoji": ("a flat drawing of",),
    "emojione": ("a flat drawing of",),
    "fxemoji": ("a flat drawing of",),
    "streamline-emojis": ("an outlined drawing of",),
    "relief": ("a 3d render of",),
}
"""Set of drawings (or `relief`: lit as a solid) -> openings of captions that name its style."""


def with_article(phrase: str) -> str:
    """Return the phrase with `a` or `an` by its first letter; plurals go without."""
    if phrase in {"grapes", "sunglasses"}:
        return phrase
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase
