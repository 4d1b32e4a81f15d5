"""A run's folder, read into the bounded, typed data that a page shows. Nothing of torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth import __version__
from dreambooth.errors import RunError, UserError
from dreambooth.runs.finding import run_of
from dreambooth.runs.folder import RunFolder
from dreambooth_plugins.report.document import Report, Run, Samples
from dreambooth_plugins.report.facts import facts_of, files_of, state_of
from dreambooth_plugins.report.inputs import read_evaluations, read_findings
from dreambooth_plugins.report.options import options_of, read_job
from dreambooth_plugins.report.pictures.photos import photos_of
from dreambooth_plugins.report.pictures.strip import Sets, read_sets, shown
from dreambooth_plugins.report.pictures.thumbs import Pool
from dreambooth_plugins.report.private import Scrub
from dreambooth_plugins.report.series import curves_of
from dreambooth_plugins.report.verdict import verdict_of

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_RUNS = 6


def gather(paths: list[Path], room: int) -> Report:
    """Return all that a page of these runs shows; pictures take `room` bytes of it at most.

    `UserError` where one is no run, where it goes away meanwhile, where one is named twice, and
    for more runs than can be told apart.
    """
    if len(paths) > MAX_RUNS:
        raise UserError(
            f"{len(paths)} runs are more than a page can compare", f"name {MAX_RUNS} at most"
        )
    folders = [run_folder(path) for path in paths]
    twice = {f.path.resolve() for f in folders}
    if len(twice) < len(folders):
        raise UserError("the same run is named twice", "name runs that differ")
    pool = Pool()
    runs = []
    for folder in folders:
        try:
            runs.append(read_run(folder, pool, room // len(folders)))
        except FileNotFoundError as error:
            raise _gone(folder.path) from error
        if not folder.path.is_dir():
            raise _gone(folder.path)
    return Report(_named_apart(runs), pool.pictures, f"dreambooth-trainer {__version__}")


def run_folder(path: Path) -> RunFolder:
    """Return a run's folder; `UserError` where there is none."""
    if path.is_file() and path.suffix in {".yaml", ".yml"}:
        inside = path.name == "job.yaml" and (path.parent / "manifest.json").is_file()
        path = path.parent if inside else run_of(path)[0].path
    if not path.exists():
        raise UserError(
            f"{path} is not there: it was never begun, moved or deleted",
            "name a run's folder, such as runs/my-dog (dbt run prints it)",
        )
    folder = RunFolder(path.absolute())
    if not path.is_dir():
        raise UserError(
            f"{path} is a file, not a run's folder", "name a run's folder, such as runs/my-dog"
        )
    if not folder.job.is_file() or not folder.manifest.is_file():
        lacks = "job.yaml" if not folder.job.is_file() else "manifest.json"
        raise UserError(
            f"{path} is not a run, or what is left of a deleted one: it has no {lacks}",
            "name a run's folder, such as runs/my-dog (dbt run prints it)",
        )
    return folder


def _address(path: Path) -> str:
    """Return what names the run in a command, without saying where this machine keeps it."""
    return f"runs/{path.name}" if path.parent.name == "runs" else path.name


def _gone(path: Path) -> RunError:
    return RunError(
        f"the run's folder is gone: {path} was deleted or moved while it was read",
        "restore it, and make the report again",
    )


def _named_apart(runs: list[Run]) -> list[Run]:
    """Give runs of one name, of different folders, numbers."""
    from dataclasses import replace

    names = [run.name for run in runs]
    return [
        replace(run, name=f"{run.name} ({i + 1})") if names.count(run.name) > 1 else run
        for i, run in enumerate(runs)
    ]


def read_run(folder: RunFolder, pool: Pool, room: int) -> Run:
    """Read one run; its pictures go to the pool, `room` bytes of a page at most."""
    manifest, job = folder.read_manifest(), read_job(folder.path)
    resolved: dict[str, Any] = manifest.get("job") or {}
    scrub = Scrub(folder.path, folder.path.parent, Path.cwd())
    key_of = _keys(resolved, scrub)
    sets = read_sets(folder.path)
    before = pool.size
    photos, notes = photos_of(manifest, pool, scrub)
    evaluations, bad = read_evaluations(folder.path, scrub, key_of)
    findings, worse = read_findings(folder, evaluations, scrub)
    curves, last = curves_of(folder.path)
    steps = int((manifest.get("result") or {}).get("steps") or max([last, *sets.files]))
    verdict, best = verdict_of(evaluations, findings, steps, bool(sets.files))
    kept = [s for s in (best, *(f.step for f in findings)) if s is not None]
    samples, left = shown(sets, pool, room - (pool.size - before), scrub, key_of, kept)
    if job is None:
        notes.append("What differs from the defaults is not marked: a plugin is missing here.")
    return Run(
        name=scrub.words(folder.path.name),
        address=_address(folder.path),
        subject=_subject(resolved, scrub),
        state=state_of(manifest, steps),
        steps=steps,
        facts=facts_of(folder, manifest, scrub),
        samples=samples,
        photos=photos,
        curves=curves,
        evaluations=evaluations,
        findings=findings,
        options=options_of(resolved, job, scrub),
        files=files_of(manifest, scrub),
        checks=[scrub.words(line) for line in (manifest.get("result") or {}).get("checks", [])],
        pictures_seen=manifest.get("images") or {},
        verdict=verdict,
        best=best,
        notes=[*sets.notes, *_words_on(sets, samples), *left, *notes, *bad, *worse],
    )


def _words_on(sets: Sets, samples: Samples) -> list[str]:
    """Say why there is little to see, where that is so."""
    if not sets.files:
        return []
    if not samples.rows:
        return ["None of the sample pictures can be read, or none fits."]
    if sum(map(len, sets.files.values())) == 1:
        return ["There is one sample picture only: nothing to compare it with but the photographs."]
    if len(sets.files) == 1:
        return ["There are pictures of one step only, so there is no change over time to see."]
    return []


def _keys(resolved: dict[str, Any], scrub: Scrub) -> Callable[[str], str]:
    """Return what names a prompt in every run that asks for the same, whatever its identifier."""
    from dreambooth.interfaces import Subject
    from dreambooth.interfaces.data import without_identifier

    said = resolved.get("subject")
    try:
        subject = Subject.model_validate(said)
    except ValueError:
        return scrub.words
    return lambda prompt: scrub.words(without_identifier(prompt, subject))


def _subject(resolved: dict[str, Any], scrub: Scrub) -> str:
    said = resolved.get("subject")
    if not isinstance(said, dict):
        return "a subject that is not named"
    return scrub.words(f"{said.get('identifier', '')} {said.get('class_noun', '')}")
