"""What a sweep.yaml says: a template, a space of its keys, an objective, how to search."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from dreambooth.component import JobPath, Section

POSTGRESQL = re.compile(r"^postgres(ql)?(\+psycopg)?://")
MAX_TRIALS = 100_000


class Axis(Section):
    """The values one key of the job may have: a list of them, or a range."""

    choices: list[Any] | None = Field(default=None, min_length=1)
    """The values themselves; `[4, 8, 16]` is short for this."""
    low: float | None = None
    """Lower end of a range, included. Whole numbers are drawn where the job's key takes those."""
    high: float | None = None
    """Upper end, included."""
    log: bool = False
    """Draw evenly in the logarithm: for rates."""
    step: float | None = Field(default=None, gt=0.0)
    """Draw multiples of this above `low` alone; a grid needs it of a range."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.choices is None) == (self.low is None and self.high is None):
            raise ValueError("name either choices or low and high")
        if self.choices is not None:
            if self.log or self.step is not None:
                raise ValueError("log and step belong to a range of low and high")
            return self
        if self.low is None or self.high is None or self.low > self.high:
            raise ValueError("a range needs low and high, and low must not be above high")
        if self.log and (self.low <= 0.0 or self.step is not None):
            raise ValueError("log needs a low above 0, and excludes step")
        return self


class Objective(Section):
    """A number the runs log, and which way it should go."""

    metric: str = Field(min_length=1)
    """Any logged number: validation/loss, metric/subject_similarity, train/loss, ..."""
    mode: Literal["min", "max"] = "min"
    """Whether lower or higher is better."""
    at: Literal["last", "best"] = "last"
    """The run's last value, or the best it ever had (keep that step by `checkpoints.keep_best`)."""


class Search(Section):
    """How values are chosen."""

    kind: Literal["tpe", "random", "grid"] = "tpe"
    """`tpe` learns from the trials that are done, `random` does not, `grid` takes every point."""
    startup: Annotated[int, Field(ge=0)] = 10
    """Trials that TPE draws at random first."""


class Pruner(Section):
    """Which trials are ended early, by the objective at each evaluation."""

    kind: Literal["none", "median", "halving"] = "none"
    """`median`: worse than the median of the others at that step. `halving`: not among the best
    share of those that came as far (asynchronous successive halving)."""
    startup: Annotated[int, Field(ge=0)] = 5
    """Trials that have to be done before `median` ends any."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Steps that every trial may do."""
    share: Annotated[int, Field(ge=2)] = 4
    """`halving` lets one in so many go on."""


def _objectives(value: Any) -> Any:
    value = value if isinstance(value, list) else [value]
    return [{"metric": v} if isinstance(v, str) else v for v in value]


def _axis(value: Any) -> Any:
    return {"choices": value} if isinstance(value, list) else value


def _named(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


class SweepFile(Section):
    """A sweep: many jobs of one template."""

    version: Literal[1] = 1
    """Version of the format."""
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)
    """Name of the study: its folder below `output`, and its name in a database."""
    output: JobPath = Path("sweeps")
    """Folder that holds studies."""
    job: JobPath
    """The template: a job file."""
    space: dict[
        str, Annotated[Axis, BeforeValidator(_axis, json_schema_input_type=list[Any] | Axis)]
    ] = Field(min_length=1)
    """Keys of the job, such as `optimizer.lr`, and the values they may have."""
    objective: Annotated[
        list[Objective],
        BeforeValidator(
            _objectives, json_schema_input_type=str | Objective | list[str | Objective]
        ),
        Field(min_length=1, max_length=2),
    ]
    """What makes a trial good: a number's name, a mapping, or two of them (Pareto front)."""
    search: Annotated[
        Search,
        BeforeValidator(_named, json_schema_input_type=Literal["tpe", "random", "grid"] | Search),
    ] = Search()
    """How values are chosen."""
    pruner: Annotated[
        Pruner,
        BeforeValidator(
            _named, json_schema_input_type=Literal["none", "median", "halving"] | Pruner
        ),
    ] = Pruner()
    """Which trials are ended early."""
    trials: Annotated[int, Field(ge=1, le=MAX_TRIALS)] | None = None
    """Trials in all, whoever runs them; a grid has as many as points."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Values drawn for a trial are a function of this, its number and (TPE) the trials before."""
    retries: Annotated[int, Field(ge=0, le=1000)] = 3
    """How many workers a trial may lose before it counts as failed."""
    storage: str = "file"
    """`file`: a journal in the study's folder, for all machines that share it. Or the URL of a
    PostgreSQL database; `${NAME}` in it is filled in from the environment, for passwords."""
    grace: Annotated[int, Field(ge=4, le=86400)] = 120
    """Seconds without a sign of life after which a database counts a worker as gone."""

    @field_validator("storage")
    @classmethod
    def _known(cls, value: str) -> str:
        if value != "file" and not POSTGRESQL.match(value):
            raise ValueError('must be "file" or postgresql://user@host/database')
        return value

    @property
    def folder(self) -> Path:
        """The study's folder."""
        return self.output.absolute() / self.name
