"""A job's sampler with some options replaced, as `dbt sample` and `dreambooth.sample` ask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from dreambooth.errors import JobError

if TYPE_CHECKING:
    from dreambooth.interfaces import Sampler


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
