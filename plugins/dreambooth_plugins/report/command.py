"""`dbt report RUN...`: what a run did, as one file to look at, keep and send."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dreambooth import hookimpl

DEFAULT_MB, MOST_MB = 8, 20


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN",
            help="A run's folder, or its job file; several are compared.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="File to write; report.html of the run by default."),
    ] = None,
    with_originals: Annotated[
        bool,
        typer.Option(
            "--with-originals", help="Also write a zip of the page and the full-size pictures."
        ),
    ] = False,
    size: Annotated[
        int, typer.Option("--size", min=1, max=MOST_MB, help="Megabytes the page may have.")
    ] = DEFAULT_MB,
    open_it: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
) -> None:
    """Write what a run did as one HTML file: verdict, pictures over time, curves, settings.

    The file needs no network and no other file, and can be sent as it is. It holds small copies of
    your photographs and of the pictures, and no paths, names or secrets of this machine. Of
    several runs it shows what differs, which is better and how certain that is, and the same
    prompts and seeds side by side.
    """
    from dreambooth.console import echo, print_warning
    from dreambooth.files import write_text
    from dreambooth.helpers.text import one_line
    from dreambooth.helpers.units import file_size, shown_path
    from dreambooth_plugins.report.pictures.originals import write_zip
    from dreambooth_plugins.report.writing import made

    dest = place(runs, out)
    html, report_ = made(runs, size * 1_000_000)
    write_text(dest, html)
    echo(f"report   {one_line(shown_path(dest))} ({file_size(len(html.encode()))})", indent=9)
    for run in report_.runs:
        echo(f"verdict  {run.name}: {run.verdict}", indent=9)
        for finding in run.findings:
            echo(f"{finding.mark:<8} {finding.sentence}", indent=9)
        for note in run.notes:
            echo(f"note     {note}", indent=9)
    if with_originals:
        archive = dest.with_suffix(".zip")
        write_zip(archive, dest, runs, report_)
        echo(
            f"zip      {one_line(shown_path(archive))} ({file_size(archive.stat().st_size)})",
            indent=9,
        )
    if open_it and not _opened(dest):
        print_warning("no browser could be started", f"open {shown_path(dest)} yourself")


def place(runs: list[Path], out: Path | None) -> Path:
    """Return the file to write: `report.html` of a run, `comparison.html` beside several."""
    from dreambooth.errors import UserError
    from dreambooth_plugins.report.gather import run_folder

    if out is None:
        first = run_folder(runs[0]).path
        return first / "report.html" if len(runs) == 1 else first.parent / "comparison.html"
    if out.is_dir():
        return out / "report.html"
    if out.suffix.lower() not in {".html", ".htm"}:
        raise UserError(
            f"{out} does not end in .html", "browsers go by the name: --out report.html"
        )
    return out


def _opened(path: Path) -> bool:
    import webbrowser

    try:
        return webbrowser.open(path.absolute().as_uri())
    except (OSError, webbrowser.Error):
        return False


@hookimpl
def register_commands() -> list[Any]:
    """Return the command."""
    return [report]
