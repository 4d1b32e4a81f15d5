"""Pictures read and augmented ahead of the step that wants them, by threads."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dreambooth.interfaces import Sample


class Reader:
    """Makes the sample of any global index, `workers` of them at a time; 0 reads when asked.

    A sample is a function of its index, so neither order nor number of threads changes one.
    Decoding and resizing release the interpreter's lock, which is why threads are enough.
    """

    def __init__(self, load: Callable[[int], Sample], workers: int) -> None:
        self._load = load
        self._pool = ThreadPoolExecutor(workers, "reader") if workers else None
        self._ahead: dict[int, Future[Sample]] = {}

    def samples(self, indices: Sequence[int], upcoming: Sequence[int] = ()) -> list[Sample]:
        """Return the samples of `indices` and begin to read those of `upcoming`."""
        if self._pool is None:
            return [self._load(i) for i in indices]
        pool, ahead = self._pool, self._ahead
        wanted = [ahead.get(i) or pool.submit(self._load, i) for i in indices]
        # What was read ahead and is not asked for is let go.
        self._ahead = {i: ahead.get(i) or pool.submit(self._load, i) for i in upcoming}
        return [future.result() for future in wanted]

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
