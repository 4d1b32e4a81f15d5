"""Reading command-line values that more than one command takes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from dreambooth.errors import JobError

if TYPE_CHECKING:
    from dreambooth.interfaces import Sampler

_SIZE = re.compile(r"^(\d+)(?:x(\d+))?$")


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Read `64` or `96x64` (height x width) in pixels; `JobError` for anything else."""
    if text is None:
        return None
    match = _SIZE.match(text.lower())
    if not match or "0" in (match[1], match[2]):
        raise JobError(f'--size "{text}" is no size', "write 512, or 512x768 (height x width)")
    height = int(match[1])
    return height, int(match[2] or height)


def with_sampler_options(sampler: Sampler, **options: Any) -> Sampler:
    """Return the sampler with the given options replaced; `JobError` where it has none such."""
    given = {name: value for name, value in options.items() if value is not None}
    unknown = [name for name in given if name not in type(sampler).model_fields]
    if unknown:
        raise JobError(
            f'sampler "{sampler.kind}" has no option "{unknown[0]}"',
            f"its options: {', '.join(n for n in type(sampler).model_fields if n != 'kind')}",
        )
    try:
        return type(sampler).model_validate({**sampler.model_dump(), **given})
    except ValidationError as error:
        first = error.errors()[0]
        raise JobError(f"sampler option {first['loc'][0]}: {first['msg']}") from error
