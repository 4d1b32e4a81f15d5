"""What somebody meant by an option that a command does not have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

TAKE_OVERRIDES = ("run", "validate")


def hint_for(error: Any) -> str:
    """Return a hint for a usage error of click: the option that was meant, or where it is set."""
    from dreambooth.helpers.text import nearest

    given, ctx = getattr(error, "option_name", None), getattr(error, "ctx", None)
    if not given or ctx is None:
        return ""
    options = [name for parameter in ctx.command.params for name in parameter.opts]
    near = nearest(given, [name for name in options if name.startswith("--")])
    if near:
        return f"did you mean {near}?"
    return _of_the_job(given.lstrip("-")) if ctx.command.name in TAKE_OVERRIDES else ""


def _of_the_job(name: str) -> str:
    """Say how an option of the job is set from the command line."""
    from dreambooth.helpers.text import nearest
    from dreambooth.jobs.aliases import reply_to

    key, places = name.replace("-", "_"), dict(_options())
    if key in places:
        return f"options of the job are set with -o: -o {places[key]}=..."
    if reply := reply_to(key):
        return f"options of the job are set with -o KEY=VALUE; {reply}"
    near = nearest(key, places)
    return f"did you mean -o {places[near]}=...?" if near else ""


def _options() -> Iterator[tuple[str, str]]:
    """Yield the job's options and where each is set; of several the first, slots' options last."""
    from dreambooth.job import Job
    from dreambooth.jobs.keys import sections
    from dreambooth.plugins import registry
    from dreambooth.plugins.slots import SLOTS

    found: dict[str, str] = {name: name for name in Job.model_fields}
    for section, model in sections(Job):
        for name in model.model_fields:
            found.setdefault(name, f"{section}.{name}")
    for shared in (True, False):  # what every kind of a slot takes goes before what one does
        for slot in (slot for slot in SLOTS.values() if slot.field):
            taken = [
                set(cls.model_fields) - {"kind"} for cls in registry().kinds(slot.name).values()
            ]
            for name in (set.intersection if shared else set.union)(*taken) if taken else ():
                found.setdefault(name, f"{slot.field}.{name}")
    yield from found.items()
