"""The numbers a run logs: their names, when one is new, and whether a job logs it at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreambooth.component import Problem
from dreambooth.helpers.text import did_you_mean, nearest

if TYPE_CHECKING:
    from dreambooth.component import Location
    from dreambooth.interfaces.callback import Event
    from dreambooth.job import Job

TRAIN = ("train/loss", "train/loss_instance", "train/grad_norm", "train/lr")
VALIDATION = ("validation/loss", "validation/loss_instance")
CLASS = ("train/loss_prior", "validation/loss_class")
"""Logged where the prior has class rows."""


def logged_at(name: str) -> Event:
    """Return the event after which a number is new: what is measured on samples comes with them."""
    if name.startswith("validation/"):
        return "validate"
    return "sample" if name.startswith(("metric/", "safety/")) else "log"


def engine_scalars(job: Job) -> list[str]:
    """Return the names the engine itself logs in a job; plugins and metrics add theirs."""
    names = [*TRAIN, *(VALIDATION if job.validation.every else ())]
    if job.prior.has_rows():
        names += [n for n in CLASS if n.startswith("train/") or job.validation.every]
    return names


def never_logged(job: Job, name: str, at: Location) -> Problem | None:
    """Say why a job never logs the number `name`, and what would make it do so.

    None where it does or may: plugins log under names of their own, and what a metric calls its
    scores shows when it has some.
    """
    known = engine_scalars(job)
    if name in known:
        return None
    if name.startswith("validation/") and not job.validation.every:
        return Problem(
            at,
            f'"{name}" is never logged: validation is off',
            "set validation.every, to 50 for example",
        )
    if name in CLASS:
        return Problem(
            at,
            f'"{name}" is the loss of class rows, and prior kind "{job.prior.kind}" brings none',
            f"use {name.rpartition('_')[0]}, or a prior with class images",
        )
    if name.startswith(("metric/", "safety/")):
        return _never_measured(job, name, at)
    if nearest(name, known, cutoff=0.75) or name.startswith("validation/"):
        return Problem(at, f'no number is logged as "{name}"', did_you_mean(name, known))
    return None


def _never_measured(job: Job, name: str, at: Location) -> Problem | None:
    looks = name.startswith("safety/")
    if looks and job.safety is None:
        return Problem(
            at, f'"{name}" is never logged: no checker looks at samples', "name one in safety"
        )
    if not looks and not job.metrics:
        return Problem(
            at,
            f'"{name}" is never logged: the job measures nothing on its samples',
            "name a metric in metrics, diversity for example",
        )
    if not job.samples.every:
        return Problem(
            at,
            f'"{name}" is never logged: metrics are measured on samples, and none are drawn',
            "set samples.every",
        )
    return None
