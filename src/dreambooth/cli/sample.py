"""`dbt sample`: draw the subject in any context a prompt names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dreambooth.errors import JobError

if TYPE_CHECKING:
    from dreambooth.engine.results.draw import Drawn

Step = Annotated[
    str | None,
    typer.Option(
        "--step",
        metavar="N[,N...]",
        help="Training steps that are kept (checkpoints.keep_every, exports.every): a row each.",
    ),
]
SamplingSteps = Annotated[
    str | None,
    typer.Option(metavar="N", help="Sampling steps; several, N,N, are training steps: --step."),
]

Size = Annotated[
    str | None, typer.Option(metavar="N|HxW", help="Side, or height x width, in pixels.")
]
Safety = Annotated[
    str | None,
    typer.Option(
        "--safety",
        metavar="ACTION|KIND",
        help="off, flag, blur or refuse, by the job's own checker; or another one: open_nsfw.",
    ),
]


def sample(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, e.g. runs/my-dog.")],
    prompts: Annotated[
        list[str],
        typer.Argument(
            metavar="PROMPT",
            help="{identifier} and {class_noun} are filled in.",
        ),
    ],
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Pictures a prompt.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Other seeds draw other pictures.")] = 0,
    steps: SamplingSteps = None,
    guidance: Annotated[float | None, typer.Option(min=0.0, help="Guidance scale.")] = None,
    negative: Annotated[str | None, typer.Option(help="What should not be seen.")] = None,
    size: Size = None,
    safety: Safety = None,
    step: Step = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder; samples/drawn-N of the run by default.")
    ] = None,
) -> None:
    """Draw pictures with a trained run.

    Writes single PNGs, with prompt, seed and settings in their metadata, and a grid.
    """
    from dreambooth.cli.display.halfblocks import halfblocks
    from dreambooth.cli.display.progress import reporter_for
    from dreambooth.console import say, stdout
    from dreambooth.engine.results.draw import DrawRequest, draw_from_run
    from dreambooth.helpers.text import one_line
    from dreambooth.helpers.units import shown_path
    from dreambooth.jobs.named import named_checker
    from dreambooth.jobs.samplers import with_sampler_options
    from dreambooth.process import only_displays
    from dreambooth.runs.finding import open_run

    only_displays()
    console = stdout()
    reporter = reporter_for(console)
    _, job = open_run(run)
    sampling, training = both_steps(steps, step)
    request = DrawRequest(
        prompts=prompts,
        count=count,
        seed=seed,
        negative=negative,
        size=parse_size(size),
        sampler=with_sampler_options(job.sampler, steps=sampling, guidance_scale=guidance),
        safety=named_checker(safety, job) if safety else None,
        out=out.absolute() if out else None,
        training_steps=training,
    )
    drawn = draw_from_run(run, request, reporter)
    if console.is_terminal:
        console.print(halfblocks(drawn.grid, console.width, console.height // 2))
    where = f"in {shown_path(drawn.grid.parent)}, all on {drawn.grid.name}"
    say(console, one_line(f"{what_was_drawn(drawn, training)} {where}"), indent=2)


def what_was_drawn(drawn: Drawn, training: tuple[int, ...]) -> str:
    """Say how many pictures were drawn, and from what."""
    pictures = f"{drawn.count} picture{'s' if drawn.count > 1 else ''}"
    source = f"final (step {drawn.step})" if drawn.source == "final" else drawn.source
    if len(training) > 1:
        source = f"steps {', '.join(map(str, training))}"
    return f"{pictures} from {source}"


def both_steps(steps: str | None, step: str | None) -> tuple[int | None, tuple[int, ...]]:
    """Return the sampling steps, and the training steps that are drawn from.

    `--steps` takes one number for sampling; a list of them can only mean training steps.
    """
    given = parse_steps(steps, "--steps")
    if steps is not None and "," in steps:
        if step is not None:
            raise JobError("--steps and --step both name training steps", "give one of them")
        return None, given
    return (given[0] if given else None), parse_steps(step)


def parse_steps(text: str | None, option: str = "--step") -> tuple[int, ...]:
    """Read `400` or `100,200,400`, in order and each once; `JobError` for anything else."""
    given = text.split(",") if text is not None else []
    if not all(re.fullmatch(r"\s*[1-9][0-9]{0,8}\s*", part, re.ASCII) for part in given):
        raise JobError(f'{option} "{text}" names no steps', "write 400, or 100,200,400")
    return tuple(sorted({int(part) for part in given}))


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
