"""Whether a job fits into a given memory, as a person reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dreambooth.cli.display.plan import PHASES, gigabytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dreambooth.engine.cost.fitting import Fit, Need


def fit_lines(fit: Fit) -> Iterator[str]:
    """Yield what to say: the verdict, then each option that helps, then those that do together."""
    limit, needs = gigabytes(fit.limit), fit.needs
    when = PHASES[needs.phase]
    if fit.fits:
        yield f"{limit} is enough: at most {gigabytes(needs.total)} ({when})"
        return
    yield f"{limit} is not enough: this job takes {gigabytes(needs.total)} at most ({when})"
    for option in fit.alone:
        verdict = ", which fits" if option.total <= fit.limit else ""
        yield f"with {option.options[0]}: {gigabytes(option.total)}{verdict}"
    if any(option.total <= fit.limit for option in fit.alone):
        return
    if fit.together is not None:
        all_of = ", ".join(fit.together.options)
        yield f"together {gigabytes(fit.together.total)}, which fits: {all_of}"
    else:
        yield "none of these is enough, nor all: a smaller data.resolution, or a smaller model"


def fit_data(fit: Fit) -> dict[str, Any]:
    """Return the same as JSON data, bytes as numbers."""

    def data(need: Need) -> dict[str, Any]:
        fits = need.total <= fit.limit
        return {"options": [*need.options], "bytes": need.total, "phase": need.phase, "fits": fits}

    return {
        "limit": fit.limit,
        **data(fit.needs),
        "alone": [data(option) for option in fit.alone],
        "together": data(fit.together) if fit.together else None,
    }
