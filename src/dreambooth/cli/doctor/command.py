"""`dbt doctor`: look at pictures before they are trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

    from dreambooth.cli.doctor.remarks import Remark, Report
    from dreambooth.cli.doctor.sidecars import Made
    from dreambooth.interfaces import Captioner, Masker
    from dreambooth.job import Job

SHEET = "doctor-crops.png"
Masks = Annotated[
    str | None,
    typer.Option("--masks", metavar="KIND", help="Write subject masks beside pictures: u2net."),
]
Captions = Annotated[
    str | None,
    typer.Option(
        "--captions", metavar="KIND", help="Write captions beside pictures: blip, florence2."
    ),
]
Model = Annotated[
    Path | None,
    typer.Option("--model", metavar="PATH", help="Weights of what makes masks or captions."),
]
Force = Annotated[
    bool, typer.Option("--force", help="Make masks and captions anew that are there already.")
]


def doctor(
    what: Annotated[
        Path,
        typer.Argument(
            metavar="DATA|JOB", help="A folder of pictures, or a job file.", show_default=False
        ),
    ],
    fix: Annotated[
        bool,
        typer.Option("--fix", help="Move broken and doubled files aside; nothing is deleted."),
    ] = False,
    sheet: Annotated[
        Path | None,
        typer.Option("--sheet", help=f"Where the sheet of crops goes; ./{SHEET} by default."),
    ] = None,
    resolution: Annotated[
        int, typer.Option("--resolution", min=8, max=8192, help="Training size, without a job.")
    ] = 512,
    masks: Masks = None,
    captions: Captions = None,
    model: Model = None,
    force: Force = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Look at pictures, captions and the job around them, before anything is trained.

    Finds broken, tiny, soft, doubled and nearly equal pictures, crops that cut, missing captions,
    an identifier of several tokens, and says how often each picture is seen. Writes a sheet of the
    pictures as they are trained; with --masks or --captions also the files beside pictures that
    training reads.
    """
    from dreambooth import console
    from dreambooth.cli.display.progress import reporter_for
    from dreambooth.cli.doctor.looking import add_sidecars, look, source_of
    from dreambooth.cli.doctor.mending import set_aside
    from dreambooth.cli.doctor.pictures import crops_sheet
    from dreambooth.helpers.pictures import save_picture
    from dreambooth.helpers.text import json_text
    from dreambooth.jobs.loading import load_job

    job = None if what.is_dir() else load_job(what)
    source = source_of(what.absolute(), resolution) if job is None else job.data
    out = console.stderr() if as_json else console.stdout()
    bar = reporter_for(out).progress
    made = add_sidecars(source, job, bar, *makers(masks, captions, model, job), force)
    report = look(source, job, bar)
    report.remarks += made.remarks
    moved = set_aside(report) if fix else []
    place = (sheet or Path(SHEET)).absolute()
    save_picture(place, crops_sheet(report.crops), {"prompt": "", "pictures": len(report.crops)})
    if as_json:
        data = {**report.as_dict(), "moved": [str(to) for _, to in moved], "sheet": str(place)}
        data["written"] = [{"file": str(w.path), "about": w.about} for w in made.written]
        typer.echo(json_text(json.loads(json.dumps(data))))
        return
    tell(out, report, made, [source for source, _ in moved], place)
    if not fix and any(remark.aside for remark in report.remarks):
        console.say(out, "next     dbt doctor --fix moves broken and doubled files aside", indent=9)


def tell(out: Console, report: Report, made: Made, moved: Iterable[Path], sheet: Path) -> None:
    """Print what was found, what was written and moved, and where the sheet of crops is."""
    from dreambooth.cli.doctor.mending import ASIDE
    from dreambooth.console import say
    from dreambooth.helpers.text import one_line
    from dreambooth.helpers.units import shown_path

    told = [*lines(report.sorted())]
    told += [f"written  {sidecar.path.name}: {sidecar.about}" for sidecar in made.written]
    told += [f"moved    {source.name} to {ASIDE}" for source in moved]
    for line in [*told, f"sheet    {shown_path(sheet)}"]:
        say(out, one_line(line), indent=9)


def makers(
    masks: str | None, captions: str | None, model: Path | None, job: Job | None
) -> tuple[Masker | None, Captioner | None]:
    """Return what makes masks and captions, as the options name it; `JobError` where they don't."""
    from dreambooth.errors import JobError
    from dreambooth.jobs.named import named

    if model is not None and (masks is None) == (captions is None):
        both = masks is not None
        raise JobError(
            "--model is of masks or of captions" + (": make one after the other" if both else ""),
            "dbt doctor DATA --masks u2net --model u2net.onnx",
        )
    masker = named("masks", masks, model, job) if masks is not None else None
    captioner = named("captions", captions, model, job) if captions is not None else None
    return masker, captioner


def lines(remarks: Iterable[Remark]) -> Iterable[str]:
    """Yield a line a remark: its mark, which pictures, what, and what to do."""
    from dreambooth.cli.doctor.remarks import listed

    for remark in remarks:
        names = f"{listed(remark.names)}: " if remark.names else ""
        after = f"; {remark.next}" if remark.next else ""
        yield f"{remark.mark:<8} {names}{remark.text}{after}"
