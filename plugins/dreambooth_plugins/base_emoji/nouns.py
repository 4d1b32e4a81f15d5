"""Which emoji stand for which class noun: the words a person would type."""

from __future__ import annotations

NOUNS: dict[str, tuple[str, ...]] = {
    "dog": ("1F415", "1F436", "1F9AE", "1F415-200D-1F9BA", "1F429"),
    "cat": ("1F408", "1F431", "1F408-200D-2B1B"),
    "fox": ("1F98A",),
    "bear": ("1F43B", "1F43B-200D-2744-FE0F"),
    "panda": ("1F43C",),
    "lion": ("1F981",),
    "tiger": ("1F405", "1F42F"),
    "cow": ("1F404", "1F42E"),
    "pig": ("1F416", "1F437"),
    "monkey": ("1F412", "1F435"),
    "rabbit": ("1F407", "1F430"),
    "mouse": ("1F401", "1F42D"),
    "horse": ("1F40E", "1F434"),
    "elephant": ("1F418",),
    "koala": ("1F428",),
    "whale": ("1F40B", "1F433"),
    "octopus": ("1F419",),
    "fish": ("1F41F", "1F420"),
    "penguin": ("1F427",),
    "chicken": ("1F414", "1F413"),
    "bird": ("1F426", "1F99C"),
    "owl": ("1F989",),
    "frog": ("1F438",),
    "turtle": ("1F422",),
    "apple": ("1F34E", "1F34F"),
    "banana": ("1F34C",),
    "strawberry": ("1F353",),
    "pineapple": ("1F34D",),
    "watermelon": ("1F349",),
    "pizza": ("1F355",),
    "burger": ("1F354",),
    "donut": ("1F369",),
    "cake": ("1F370", "1F382"),
    "car": ("1F697", "1F695", "1F699", "1F698"),
    "bus": ("1F68C", "1F68D"),
    "bike": ("1F6B2",),
    "truck": ("1F69A", "1F69B"),
    "train": ("1F682", "1F686"),
    "rocket": ("1F680",),
    "house": ("1F3E0", "1F3E1"),
}
"""Class noun -> code points, as the packages' `emoji.json` spells them."""

SUBJECTS: dict[str, str] = {
    "fox": "1f98a",
    "octopus": "1f419",
    "cat": "1f408",
    "penguin": "1f427",
    "car": "1f697",
    "frog": "1f438",
}
"""Class nouns DreamBooth is tried on -> file names of Fluent's 3D drawings, never trained on."""

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

SCENES: dict[str, tuple[str, ...]] = {
    "grass": ("on the grass", "on grass"),
    "snow": ("in the snow",),
    "night": ("at night",),
    "beach": ("on the beach", "at the beach"),
}
"""Drawn scenes and the words for them."""

PATTERNS = ("stripes", "dots", "checks")
POSITIONS = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
}


def with_article(phrase: str) -> str:
    """Return the phrase with `a` or `an`, by its first letter."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase
