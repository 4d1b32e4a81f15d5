"""The process a run lives in: streams that may fail, and signals that ask for something.

The one place that replaces standard streams and signal handlers. What is printed is for the eye: a
stream that cannot be written (its reader has gone, its disk is full, its terminal was closed) goes
quiet and never ends work. A handler only takes a note; what is done about it is decided where
nothing is half done.
"""

from dreambooth.process.signals import (
    SAME_REQUEST,
    Signals,
    Stopped,
    hold,
    noted_signals,
    noting,
    numbers,
    raise_stopped,
    saves,
    spare,
    stops,
    suspend,
)
from dreambooth.process.streams import guard_streams, newly_quiet, only_displays, stdout_failure

__all__ = [
    "SAME_REQUEST",
    "Signals",
    "Stopped",
    "guard_streams",
    "hold",
    "newly_quiet",
    "noted_signals",
    "noting",
    "numbers",
    "only_displays",
    "raise_stopped",
    "saves",
    "spare",
    "stdout_failure",
    "stops",
    "suspend",
]
