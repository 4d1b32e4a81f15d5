"""`dbt evaluate RUN`: a trained run in numbers, beside the untrained base and the photographs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dreambooth import hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dreambooth.interfaces import Evaluation
    from dreambooth.runs.folder import RunFolder

SETS = ("dreambench-object", "dreambench-live")


RunOption = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        help="A run's folder, or its job file; with --benchmark the job that serves as recipe.",
        show_default=False,
    ),
]
StepOption = Annotated[
    int | None, typer.Option("--step", min=1, help="A step whose weights the run keeps.")
]
AllStepsOption = Annotated[
    bool,
    typer.Option(
        "--all-steps", help="Measure the samples drawn while training, and name the best step."
    ),
]
PromptsOption = Annotated[
    str | None,
    typer.Option(
        "--prompts", metavar="FILE", help=f"A YAML file of prompts, or {' or '.join(SETS)}."
    ),
]
ImagesOption = Annotated[
    int, typer.Option("--images-per-prompt", min=1, max=64, help="Pictures a prompt.")
]
EncoderOption = Annotated[
    str,
    typer.Option(
        "--encoder",
        metavar="NAME|FOLDER",
        help="enet-i, emoji-64-clip, emoji-128-clip, or the folder of a CLIP or DINO.",
    ),
]
LpipsOption = Annotated[
    Path | None, typer.Option("--lpips", help="Folder of LPIPS weights, for diversity.")
]
BenchmarkOption = Annotated[
    Path | None,
    typer.Option(
        "--benchmark",
        metavar="FOLDER",
        help="Train and measure every subject of a folder laid out as DreamBench is.",
    ),
]
AsJsonOption = Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")]
AsCsvOption = Annotated[bool, typer.Option("--csv", help="Print the numbers as CSV.")]


def evaluate(
    run: RunOption,
    step: StepOption = None,
    all_steps: AllStepsOption = False,
    prompts: PromptsOption = None,
    images: ImagesOption = 4,
    encoder: EncoderOption = "auto",
    lpips: LpipsOption = None,
    benchmark: BenchmarkOption = None,
    as_json: AsJsonOption = False,
    as_csv: AsCsvOption = False,
) -> None:
    """Measure a trained run: likeness, prompts, class, variety, drift, copying.

    Draws the same prompts and seeds with the untrained base and the trained model, once, and
    writes the numbers into evaluations/ of the run, beside those of other prompts or encoders. Each
    number stands beside the untrained base's and the photographs' own, with its standard error.
    """
    from dreambooth import JobError
    from dreambooth.api import evaluate as measure
    from dreambooth.api import terminal
    from dreambooth.runs.finding import run_of
    from dreambooth_plugins.evaluate.metrics import default_metrics
    from dreambooth_plugins.evaluate.showing import csv_text, json_text

    if as_json and as_csv:
        raise JobError("--json and --csv exclude each other", "leave one of them out")
    if all_steps and (prompts or step):
        raise JobError(
            "--all-steps measures the samples that were drawn while training",
            "leave --prompts and --step out, or --all-steps",
        )
    if benchmark is not None:
        if all_steps or step or prompts:
            raise JobError(
                "--benchmark has prompts of its own and measures results",
                "leave --prompts, --step and --all-steps out",
            )
        _benchmark(run, benchmark, encoder, lpips, images, as_json=as_json, as_csv=as_csv)
        return
    folder, job = run_of(run)
    metrics = default_metrics(job, encoder, lpips.absolute() if lpips else None)
    found = measure(
        folder.path,
        metrics,
        prompts=_prompts(prompts),
        images_per_prompt=images,
        step=step,
        all_steps=all_steps,
        reporter=terminal(quiet_stdout=as_json or as_csv),
    )
    if as_json:
        typer.echo(json_text(found), nl=False)
    elif as_csv:
        typer.echo(csv_text(found), nl=False)
    else:
        _show(folder, job.name, found, all_steps)


def _show(folder: RunFolder, name: str, found: Sequence[Evaluation], all_steps: bool) -> None:
    """Print the numbers, the best of several steps, and what they say."""
    from dreambooth.console import echo
    from dreambooth.runs.findings import finding_lines, read_findings
    from dreambooth_plugins.evaluate.showing import best_line, lines

    for evaluation in found:
        for line in lines(name, evaluation):
            echo(line, indent=2)
    if all_steps:
        echo(best_line(found), indent=2)
    for line in finding_lines(read_findings(folder, found[-1].file.name)):
        echo(line, indent=9)


def _benchmark(
    recipe: Path,
    folder: Path,
    encoder: str,
    lpips: Path | None,
    images: int,
    *,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Walk the subjects of a folder, and print the table."""
    import json

    from dreambooth.api import load, terminal
    from dreambooth.console import echo
    from dreambooth_plugins.evaluate.benchmark import lines, rows, walk

    reporter = terminal(quiet_stdout=as_json or as_csv)
    weights = lpips.absolute() if lpips else None
    done = walk(load(recipe), folder, encoder, weights, images, reporter)
    table = rows(done)
    if as_json:
        typer.echo(json.dumps({"version": 1, "rows": table}, indent=2))
    elif as_csv:
        typer.echo(",".join(table[0]))
        for row in table:
            typer.echo(",".join("" if v is None else str(v) for v in row.values()))
    else:
        for line in lines(done):
            echo(line, indent=2)


def _prompts(name: str | None) -> Path | None:
    """Return the file of prompts that is meant: one that comes along, or a person's."""
    if name in SETS:
        return Path(__file__).parent / "prompts" / f"{name}.yaml"
    return Path(name) if name is not None else None


@hookimpl
def register_commands() -> list[object]:
    """Bring `dbt evaluate`."""
    return [evaluate]
