"""The one door through which plugins are called at run time.

Every method of the interfaces that a plugin's class implements is put behind it when the class is
made, so whoever calls (the engine, the command line, another plugin) calls through it, and no call
site looks any different. The door holds the answer against the contract (`interfaces.answers`),
puts back what the call changed for the whole process, and remembers which component opened what.
An exception passes it unchanged: `plugins.faults` reads in its traceback which door it came
through, and makes the plugin's error of it where a run or a command ends. So a plugin's own code
and tests see the exceptions they raise.
"""

from __future__ import annotations

import functools
import inspect
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Check = Callable[..., str]
    """Called as the method was, after its answer; says what is wrong with that, or nothing."""
    Teller = Callable[[Any, str, str], None]
    Hearer = Callable[[Any, str, Any, float], None]

MAIN = threading.main_thread().ident
INTERFACES = "dreambooth.interfaces."
ANSWERS: dict[Any, Check] = {}
"""What holds the answer of a method to its contract, by the method as an interface declares it."""


ADDED: dict[Any, tuple[str, ...]] = {}
"""Optional arguments that a method got after 0.1.0, in the order they came. A plugin written before
goes on without them: that is what minor versions promise (plugins/README.md, "Versions")."""


class WrongAnswer(Exception):
    """A plugin's method returned something else than its contract says."""


class Called:
    """Base of what plugins implement: components, and the objects that their `open` returns."""

    opened_by = None
    """The component that this object came from; None for components themselves."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Put the methods that a plugin's class implements behind the door."""
        super().__init_subclass__(**kwargs)
        if cls.__module__.startswith((INTERFACES, "dreambooth.component")):
            return
        for name, declared in declared_methods(cls).items():
            own = inspect.getattr_static(cls, name)
            behind = own in declared or getattr(own, "__code__", None) is DOOR
            if inspect.isfunction(own) and not behind:
                checks = (ANSWERS[method] for method in declared if method in ANSWERS)
                added = next((ADDED[method] for method in declared if method in ADDED), ())
                setattr(cls, name, _door(without(own, added), name, next(checks, None)))


def declared_methods(cls: type) -> dict[str, list[Any]]:
    """Return the public methods that the interfaces of a class declare, by name."""
    found: dict[str, list[Any]] = {}
    for base in cls.__mro__:
        if base.__module__.startswith(INTERFACES) or base.__name__ == "Component":
            for name, value in vars(base).items():
                if inspect.isfunction(value) and not name.startswith("_"):
                    found.setdefault(name, []).append(value)
    return found


def without(method: Callable[..., Any], added: Sequence[str]) -> Callable[..., Any]:
    """Return a method that is not given those arguments in `added` that it does not know."""
    if not added:
        return method
    known = inspect.signature(method).parameters
    flexible = {p.kind for p in known.values()} & {inspect.Parameter.VAR_KEYWORD}
    new = () if flexible else tuple(name for name in added if name not in known)
    if not new:
        return method
    most = len(known)

    @functools.wraps(method)
    def older(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        left = {name: value for name, value in kwargs.items() if name not in new}
        return method(self, *args[: most - 1 - len(left)], **left)

    return older


def _door(method: Callable[..., Any], name: str, check: Check | None) -> Callable[..., Any]:
    @functools.wraps(method)
    def through_the_door(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        before = settings()
        heard = _Told.calls
        start = time.perf_counter() if heard is not None else 0.0
        try:
            answer = method(self, *args, **kwargs)
        finally:
            if settings() != before and (changed := put_back(before)) and _Told.by is not None:
                _Told.by(self, name, changed)
        if check is not None and (fault := check(answer, self, *args, **kwargs)):
            raise WrongAnswer(fault)
        if heard is not None:
            heard(self, name, answer, time.perf_counter() - start)
        if isinstance(answer, Called) and answer is not self and answer.opened_by is None:
            _remember(answer, self)
        return answer

    return through_the_door


DOOR = _door(lambda self: None, "", None).__code__
"""What frames of the door run: tracebacks are searched for it."""


def _remember(opened: Called, by: Any) -> None:
    if not hasattr(type(opened), "model_fields"):  # another component is nobody's
        opened.opened_by = by.opened_by or by


def settings() -> tuple[Any, ...]:
    """Return what plugins share with everybody and must leave alone: torch's default type, and
    whether gradients are kept. Empty without torch, and in other threads than the main one, who
    may see what a library changes for a moment."""
    torch = sys.modules.get("torch")
    if torch is None or threading.get_ident() != MAIN:
        return ()
    return (torch.get_default_dtype(), torch.is_grad_enabled())


def put_back(before: tuple[Any, ...]) -> str:
    """Set everything as `settings` found it; say what was changed, or nothing."""
    if settings() == before:
        return ""
    torch: Any = sys.modules["torch"]
    dtype, gradients = before or (torch.float32, True)  # torch was loaded since
    changed = []
    if torch.get_default_dtype() != dtype:
        changed.append(f"torch's default type to {torch.get_default_dtype()}")
        torch.set_default_dtype(dtype)
    if torch.is_grad_enabled() != gradients:
        changed.append(f"torch's gradients to {'off' if gradients else 'on'}")
        torch.set_grad_enabled(gradients)
    return f"changed {' and '.join(changed)}, which was put back" if changed else ""


class _Told:
    by: Teller | None = None
    calls: Hearer | None = None


def hear_calls(hearer: Hearer | None) -> None:
    """Let `hearer(owner, method, answer, seconds)` hear of every call of a plugin; None ends it."""
    _Told.calls = hearer


@contextmanager
def told_by(teller: Teller) -> Iterator[None]:
    """Let `teller(owner, method, what it did)` hear of what the door puts back in the block."""
    before, _Told.by = _Told.by, teller
    try:
        yield
    finally:
        _Told.by = before
