"""`dbt doctor`: look at pictures before they are trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dreambooth.cli.doctor.remarks import Remark

SHEET = "doctor-crops.png"


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
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Look at pictures, captions and the job around them, before anything is trained.

    Finds broken, tiny, soft, doubled and nearly equal pictures, crops that cut, missing captions,
    an identifier of several tokens, and says how often each picture is seen. Writes a sheet of the
    pictures as they are trained.
    """
    from dreambooth import console
    from dreambooth.cli.display.progress import reporter_for
    from dreambooth.cli.doctor.looking import look, source_of
    from dreambooth.cli.doctor.mending import ASIDE, set_aside
    from dreambooth.cli.doctor.pictures import crops_sheet
    from dreambooth.console import say
    from dreambooth.helpers.pictures import save_picture
    from dreambooth.helpers.text import json_text, one_line
    from dreambooth.helpers.units import shown_path
    from dreambooth.jobs.loading import load_job

    job = None if what.is_dir() else load_job(what)
    source = source_of(what.absolute(), resolution) if job is None else job.data
    out = console.stderr() if as_json else console.stdout()
    report = look(source, job, reporter_for(out).progress)
    moved = set_aside(report) if fix else []
    place = (sheet or Path(SHEET)).absolute()
    save_picture(place, crops_sheet(report.crops), {"prompt": "", "pictures": len(report.crops)})
    if as_json:
        data = {**report.as_dict(), "moved": [str(to) for _, to in moved], "sheet": str(place)}
        typer.echo(json_text(json.loads(json.dumps(data))))
        return
    for line in lines(report.sorted()):
        say(out, one_line(line), indent=9)
    for source_path, _ in moved:
        say(out, one_line(f"moved    {source_path.name} to {ASIDE}"), indent=9)
    if not fix and any(remark.aside for remark in report.remarks):
        say(out, "next     dbt doctor --fix moves broken and doubled files aside", indent=9)
    say(out, one_line(f"sheet    {shown_path(place)}"), indent=9)


def lines(remarks: Iterable[Remark]) -> Iterable[str]:
    """Yield a line a remark: its mark, which pictures, what, and what to do."""
    from dreambooth.cli.doctor.remarks import listed

    for remark in remarks:
        names = f"{listed(remark.names)}: " if remark.names else ""
        after = f"; {remark.next}" if remark.next else ""
        yield f"{remark.mark:<8} {names}{remark.text}{after}"
