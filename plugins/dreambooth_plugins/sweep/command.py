"""`dbt sweep FILE` and `dbt work STUDY`: search a space of jobs, with any number of workers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dreambooth import FileKind, hookimpl

if TYPE_CHECKING:
    from dreambooth.component import Section
    from dreambooth_plugins.sweep.checking import Sweep
    from dreambooth_plugins.sweep.folder import StudyFolder

AsJsonOption = Annotated[bool, typer.Option("--json", help="Print the results as JSON.")]
MARKER = "space"


def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A sweep file.", show_default=False)],
    as_json: AsJsonOption = False,
) -> None:
    """Search values of a job's options: many trials of one job, and the best as a job to run.

    The same command again goes on with what is not done, and `dbt work STUDY` beside it shares
    the trials, on this machine or another.
    """
    from dreambooth_plugins.sweep.checking import check
    from dreambooth_plugins.sweep.folder import begin

    checked = check(file)
    _work(begin(checked), checked, checked.file.storage, as_json)


def work(
    study: Annotated[
        Path,
        typer.Argument(
            metavar="STUDY", help="A study's folder, or its sweep file.", show_default=False
        ),
    ],
    as_json: AsJsonOption = False,
) -> None:
    """Add a worker to a study: it runs trials until all are done.

    A trial whose worker is gone goes on from its checkpoint.
    """
    from dreambooth_plugins.sweep.folder import open_study

    if study.is_file():
        sweep(study, as_json)
        return
    folder, checked = open_study(study)
    _work(folder, checked, checked.file.storage, as_json)


def _work(folder: StudyFolder, checked: Sweep, storage: str, as_json: bool) -> None:
    from dreambooth.api import terminal
    from dreambooth.console import echo
    from dreambooth_plugins.sweep import results
    from dreambooth_plugins.sweep.storage import StorageAway
    from dreambooth_plugins.sweep.worker import Worker

    worker = Worker(folder, checked, terminal(quiet_stdout=as_json), storage)

    def show() -> None:
        said = results.write(folder, checked, worker.newest())
        if as_json:
            _print(said)
        else:
            for line in results.lines(folder, said):
                echo(line, indent=9)

    with worker.store:
        try:
            worker.work()
        except StorageAway:  # which knows the results
            raise
        except BaseException:
            show()
            raise
        show()


def _print(said: dict[str, Any]) -> None:
    import json

    typer.echo(json.dumps(said, indent=2, ensure_ascii=False))


def _model() -> type[Section]:
    from dreambooth_plugins.sweep.file import SweepFile

    return SweepFile


def _summary(path: Path) -> str:
    from dreambooth_plugins.sweep.checking import summary

    return summary(path)


@hookimpl
def register_commands() -> list[Any]:
    """Bring `dbt sweep` and `dbt work`."""
    return [sweep, work]


@hookimpl
def register_files() -> list[FileKind]:
    """Let `dbt validate` and `dbt schema` know sweep files."""
    return [FileKind("sweep", MARKER, _model, _summary)]
