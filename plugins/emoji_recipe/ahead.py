"""Work that is a function of its number, done in order or ahead by worker processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from torch.utils.data import DataLoader, Dataset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

T = TypeVar("T")
PREFETCH = 4
"""Results a worker may have waiting."""


class _Made(Dataset[T]):
    """What `make` gives for a number, as a dataset."""

    def __init__(self, make: Callable[[int], T]) -> None:
        self.make = make

    def __getitem__(self, number: int) -> T:
        return self.make(number)


def _as_it_is(value: Any) -> Any:
    return value


def ahead(
    make: Callable[[int], T], numbers: Iterable[int], workers: int, pinned: bool = False
) -> Iterator[T]:
    """Yield make(number) for every number, in order.

    Workers are forked: `make` may be a closure, and what it holds is not copied. They change the
    time, never a result, as every result is a function of its number. `numbers` is read in this
    process, a few results ahead. `pinned`: tensors arrive in page-locked memory.
    """
    if not workers:
        yield from (make(number) for number in numbers)
        return
    yield from DataLoader(
        _Made(make),
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=pinned,
        prefetch_factor=PREFETCH,
        multiprocessing_context="fork",
    )
