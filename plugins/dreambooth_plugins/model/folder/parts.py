"""The parts of an opened model, in memory or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from torch.nn import Module


class Parts(Mapping[str, Module]):
    """Modules by name, loaded when first asked for; iterating does not load."""

    def __init__(self, names: Sequence[str], load: Callable[[str], Module]) -> None:
        self._names = tuple(names)
        self._load = load
        self.loaded: dict[str, Module] = {}

    def __getitem__(self, name: str) -> Module:
        if name not in self._names:
            raise KeyError(name)
        if name not in self.loaded:
            self.loaded[name] = self._load(name)
        return self.loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
