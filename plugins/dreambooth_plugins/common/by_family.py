"""What a job leaves to the model's family: the kind of a slot, with the options that were given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from dreambooth.errors import JobError
from dreambooth.plugins import registry

if TYPE_CHECKING:
    from dreambooth.component import Component
    from dreambooth.interfaces import ModelInfo


def of_family(auto: Component, slot: str, info: ModelInfo, kind: str, diffusion: str) -> Any:
    """Return the component that `auto` comes to for a model, with the options it was given.

    `kind` is what the family names, `diffusion` what others get that predict epsilon or v.
    `JobError` where there is none, or where it has no such option.
    """
    wanted = kind or ("" if info.prediction == "flow" else diffusion)
    known = registry().kinds(slot)
    if wanted not in known or wanted == auto.kind:
        named = f'names "{wanted}", which is not installed' if wanted else "names none"
        others = ", ".join(sorted(known.keys() - {auto.kind}))
        raise JobError(
            f"{slot}: auto is left to the family, and {info.family} {named}",
            f"name one in {slot}.kind; installed: {others}",
        )
    given = {name: getattr(auto, name) for name in auto.model_fields_set - {"kind"}}
    try:
        return known[wanted].model_validate({"kind": wanted, **given})
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"]))
        raise JobError(
            f"{slot}: auto comes to {wanted} for this model, which does not take {at}: "
            f"{first['msg']}",
            f"leave it out, or name {slot}.kind",
        ) from error
