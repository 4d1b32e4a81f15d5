"""What the doctor says, and the order of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from PIL.Image import Image

Mark = Literal["problem", "look", "good"]
ORDER: tuple[Mark, ...] = ("problem", "look", "good")


@dataclass(frozen=True)
class Remark:
    """One thing about the pictures, in words."""

    mark: Mark
    about: str
    """`broken`, `tiny`, `soft`, `duplicate`, `alike`, `suffix`, `cut`, `caption`, `shapes`,
    `identifier`, `amount`, `mask`."""
    text: str
    names: tuple[str, ...] = ()
    next: str = ""
    aside: tuple[str, ...] = ()
    """Files that `--fix` moves aside."""


@dataclass
class Report:
    """Everything the doctor found."""

    folder: Path | None
    """Where the pictures lie; None for a source without one."""
    pictures: int = 0
    remarks: list[Remark] = field(default_factory=list)
    crops: list[tuple[str, Image]] = field(default_factory=list)
    """Names and crops as trained."""

    def sorted(self) -> list[Remark]:
        """Return the remarks, the worst first."""
        return sorted(self.remarks, key=lambda remark: ORDER.index(remark.mark))

    def worst(self, count: int) -> list[Remark]:
        """Return the worst remarks that ask for something."""
        return [remark for remark in self.sorted() if remark.mark != "good"][:count]

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, for `--json`."""
        return {
            "version": 1,
            "pictures": self.pictures,
            "remarks": [
                {
                    "mark": remark.mark,
                    "about": remark.about,
                    "text": remark.text,
                    "names": list(remark.names),
                    "next": remark.next,
                }
                for remark in self.sorted()
            ],
        }


def listed(names: Sequence[str], most: int = 4) -> str:
    """Return `a.jpg, b.jpg and 3 more`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"
