"""`dbt validate`, `dbt schema` and what `main` makes of errors; bad jobs against golden texts.

`tests/data/bad_jobs/NAME.yaml` is a bad job, `NAME.txt` what is said about it. A first line
`# args: ...` gives options. `REGENERATE_GOLDEN=1 pytest tests/unit/cli/test_validate_cli.py` writes
the texts anew: read the difference before it is kept.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import pytest

from dreambooth import (
    DataSource,
    Exporter,
    FreezingPolicy,
    Job,
    Loss,
    Prior,
    Problem,
    Scheduler,
    UserError,
    cli,
    hookimpl,
)
from dreambooth.errors import PluginError
from dreambooth.jobs import checks
from dreambooth.jobs.diagnostics import JobErrors
from dreambooth.jobs.loading import check_job, load_job
from dreambooth.plugins import registry_with

BAD_JOBS = Path(__file__).parents[2] / "data" / "bad_jobs"
NAMES = sorted(path.stem for path in BAD_JOBS.glob("*.yaml"))
PLAIN = {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "100"}

GOOD = """\
model: {kind: stable_diffusion, source: "builtin:tiny"}
subject: {identifier: ohwx, class_noun: dog}
data: {kind: folder, path: pictures, resolution: 64}
train: {steps: 5}
"""


@pytest.fixture
def dbt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command line in this process: `dbt("validate", "job.yaml").code`."""
    for name, value in PLAIN.items():
        monkeypatch.setenv(name, value)

    def run(*args: str) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["dbt", *args])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        shown = capsys.readouterr()
        return SimpleNamespace(code=caught.value.code, out=shown.out, err=shown.err)

    return run


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A good job with a picture."""
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (64, 64), (200, 120, 40)).save(tmp_path / "pictures" / "dog.png")
    path = tmp_path / "job.yaml"
    path.write_text(GOOD)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_bad_job_is_told_in_plain_words(
    name: str, dbt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(BAD_JOBS)
    source = (BAD_JOBS / f"{name}.yaml").read_text(encoding="utf-8")
    args = re.match(r"# args: (.*)", source)
    began = time.monotonic()
    result = dbt("validate", f"{name}.yaml", *(args[1].split() if args else ()))
    assert time.monotonic() - began < 2
    said = result.err.replace(str(BAD_JOBS), "<folder>")
    golden = BAD_JOBS / f"{name}.txt"
    if os.environ.get("REGENERATE_GOLDEN"):
        golden.write_text(said, encoding="utf-8")
    assert (result.code, result.out) == (2, "")
    assert said == golden.read_text(encoding="utf-8")
    assert "pydantic" not in said
    assert "Traceback" not in said


def test_no_golden_text_is_left_over() -> None:
    assert sorted(path.stem for path in BAD_JOBS.glob("*.txt")) == NAMES


def test_a_good_job_is_one_line(dbt: Any, good: Path) -> None:
    result = dbt("validate", str(good))
    assert (result.code, result.err) == (0, "")
    assert result.out == (
        f"{good}: ok: dreambooth, ohwx dog, stable_diffusion builtin:tiny, components freezing, "
        "prior_preservation loss, 5 steps of 1, 64 x 64 px\n"
    )


def test_all_files_are_checked(dbt: Any, good: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("trian: 1\n")
    result = dbt("validate", str(tmp_path / "bad.yaml"), str(good), str(tmp_path / "gone.yaml"))
    assert result.code == 2
    assert ": ok: " in result.out
    assert "bad.yaml:1:1: unknown key" in result.err
    assert "gone.yaml: no such file" in result.err


def test_json_holds_places_and_summaries(dbt: Any, good: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(GOOD.replace("steps", "stpes"))
    result = dbt("validate", "--json", str(good), str(tmp_path / "bad.yaml"))
    first, second = json.loads(result.out)
    assert (result.code, result.err) == (2, "")
    assert first["ok"]
    assert first["summary"].endswith("64 x 64 px")
    assert second["errors"] == [
        {
            "file": str(tmp_path / "bad.yaml"),
            "line": 4,
            "column": 9,
            "at": ["train", "stpes"],
            "message": 'unknown key "stpes"',
            "hint": 'did you mean "steps"?',
        }
    ]


def test_overrides_go_on_top_of_the_file(dbt: Any, good: Path) -> None:
    assert "9 steps" in dbt("validate", str(good), "-o", "train.steps=9").out
    result = dbt("validate", str(good), "-o", "data.resolution=100")
    assert result.err.startswith("-o data.resolution=100: 100 is not a multiple of 8")


def test_usage_errors_exit_with_2(dbt: Any) -> None:
    result = dbt("valdate")
    assert result.code == 2
    assert "valdate" in result.err
    assert dbt("validate").code == 2
    assert dbt("validate", "--frob", "x").code == 2


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (("sample", "run", "a dog", "--stpes", "3"), "did you mean --steps?"),
        (("run", "job.yaml", "--dryrun"), "did you mean --dry-run?"),
        (("run", "job.yaml", "--stpes", "3"), "did you mean -o train.steps=...?"),
        (("run", "job.yaml", "--steps", "3"), "set with -o: -o train.steps=..."),
        (("run", "job.yaml", "--lr", "1"), "set with -o: -o optimizer.lr=..."),
        (("run", "job.yaml", "--max_train_steps", "3"), "here it is called train.steps"),
    ],
)
def test_a_wrong_option_is_told_which_one_was_meant(
    dbt: Any, args: tuple[str, ...], hint: str
) -> None:
    done = dbt(*args)
    assert done.code == 2
    assert hint in done.err.partition("hint: ")[2]


def test_help_and_version(dbt: Any) -> None:
    from dreambooth import __version__

    assert dbt("--version").out == f"dreambooth-trainer {__version__}\n"
    short, long = dbt("-h"), dbt("--help")
    assert short.code == long.code == 0
    assert short.out == long.out
    assert "completion" not in short.out
    for command in ("run", "validate", "plugins", "init", "schema", "sample"):
        assert f"\n  {command} " in short.out
        assert dbt(command, "-h").code == 0


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("It broke", "mend\nor not"), 1, "error: It broke\n  hint: mend\n  hint: or"),
        (PluginError("Bad plugin"), 3, "error: Bad plugin\n"),
        (KeyboardInterrupt(), 130, ""),
        (ZeroDivisionError("x"), 1, "please report it"),
    ],
)  # fmt: skip
def test_errors_become_words_and_codes(
    dbt: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str
) -> None:
    def fail() -> dict[str, Any]:
        raise error

    monkeypatch.setattr("dreambooth.jobs.schema.job_schema", fail)
    result = dbt("schema")
    assert result.code == code
    assert said in result.err
    assert ("Traceback" in result.err) == isinstance(error, ZeroDivisionError)


def test_a_reader_that_goes_away_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "dreambooth", "schema"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 1


# What slots need of each other, with kinds made for it.


class NeedyLoss(Loss):
    """Needs what it is told to."""

    kind: Literal["needy"] = "needy"
    wants: tuple[str, ...] = ()
    """Needs."""

    def required(self) -> frozenset[str]:
        return frozenset(self.wants)

    def rows(self, s: Any) -> Any:
        return s.weight


class Rowless(Prior):
    """No class rows."""

    kind: Literal["rowless"] = "rowless"

    def has_rows(self) -> bool:
        return False

    def open(self, *args: Any) -> Any:
        raise AssertionError


class Flow(Scheduler):
    """No noise ratio."""

    kind: Literal["flowing"] = "flowing"

    def has_snr(self) -> bool:
        return False

    def open(self, info: Any) -> Any:
        raise AssertionError


class Masked(DataSource):
    """Pictures with masks, or without."""

    kind: Literal["masked"] = "masked"
    resolution: int = 64
    mask: bool = False
    """Read masks."""

    def scan(self, ctx: Any) -> Any:
        raise AssertionError

    def load(self, item: Any, variant: Any, rng: Any) -> Any:
        raise AssertionError


class Embedding(FreezingPolicy):
    """Ends in an embedding; trains the VAE if asked to."""

    kind: Literal["embedding"] = "embedding"
    artifacts: ClassVar[Any] = frozenset({"embedding"})
    vae: bool = False
    """Train the VAE."""
    fault: Literal["", "user", "bug"] = ""
    """How the check fails."""

    def trained_parts(self, info: Any) -> tuple[str, ...]:
        return ("vae",) if self.vae else ()

    def trainable(self, model: Any) -> Any:
        raise AssertionError

    def check(self, job: Job, info: Any) -> list[Problem]:
        if self.fault == "bug":
            raise ZeroDivisionError("oops")
        if self.fault == "user":
            raise UserError("cannot tell", "look")
        return []


class Strange(Embedding):
    """Ends in something that no format is known for."""

    artifacts: ClassVar[Any] = frozenset({"strange"})


class Fits(Exporter):
    """Takes embeddings."""

    kind: Literal["fits"] = "fits"
    accepts: ClassVar[Any] = frozenset({"embedding"})

    def write(self, *args: Any) -> None:
        raise AssertionError

    def check(self, *args: Any) -> Any:
        return () if len(args) == 2 else None


class Plugin:
    @hookimpl
    def register_losses(self) -> Any:
        return [NeedyLoss]

    @hookimpl
    def register_priors(self) -> Any:
        return [Rowless]

    @hookimpl
    def register_schedulers(self) -> Any:
        return [Flow]

    @hookimpl
    def register_data_sources(self) -> Any:
        return [Masked]

    @hookimpl
    def register_freezing_policies(self) -> Any:
        return [Embedding]


JOB = {
    "model": {"kind": "stable_diffusion", "source": "builtin:tiny"},
    "subject": {"identifier": "ohwx", "class_noun": "dog"},
    "data": "masked",
    "samples": {"prompts": ["a dog"]},
}


def problems(**sections: Any) -> dict[str, str]:
    with registry_with(Plugin()):
        found = checks.preflight(Job.model_validate({**JOB, **sections}))
    return {".".join(map(str, p.at)): f"{p.message}; {p.hint}" for p in found}


@pytest.mark.parametrize(
    ("need", "unmet", "met"),
    [
        ("class_rows", {"prior": "rowless"}, {"prior": "generated"}),
        ("snr", {"scheduler": "flowing"}, {"scheduler": "ddpm"}),
        ("mask", {"data": "masked"}, {"data": {"kind": "masked", "mask": True}}),
        (
            "reference",
            {"freezing": "components"},
            {"freezing": {"kind": "components", "reference": "frozen_copy"}},
        ),
        (
            "class_reference",
            {"freezing": "components"},
            {"freezing": {"kind": "components", "reference": "frozen_copy"}},
        ),
        (
            "trains_vae",
            {"freezing": "embedding"},
            {"freezing": {"kind": "embedding", "vae": True}},
        ),
    ],
)
def test_a_loss_is_told_what_it_lacks(need: str, unmet: Any, met: Any) -> None:
    loss = {"kind": "needy", "wants": [need]}
    assert 'loss kind "needy"' in problems(loss=loss, **unmet)["loss"]
    assert "loss" not in problems(loss={"kind": "needy"}, **unmet)
    if met is not None:
        assert "loss" not in problems(loss=loss, **met)


def test_full_training_is_told_what_a_reference_costs_it() -> None:
    found = problems(prior="mirror", loss="self_distilled_prior")
    for slot in ("prior", "loss"):
        assert 'which freezing kind "components" does not keep' in found[slot]
        assert "set freezing.reference: frozen_copy" in found[slot]
        assert "second time" in found[slot]
    keeping = {"kind": "components", "reference": "frozen_copy"}
    assert not {"prior", "loss"} & problems(prior="mirror", freezing=keeping).keys()
    assert "freezing.reference" in problems(freezing=keeping)


def test_class_rows_have_no_part_in_dco() -> None:
    keeping = {"kind": "components", "reference": "frozen_copy"}
    assert "set prior: none" in problems(loss="dco", freezing=keeping)["prior"]
    assert "prior" not in problems(loss="dco", freezing=keeping, prior="none")


def test_sizes_off_the_grid_name_their_neighbours() -> None:
    found = problems(data={"kind": "masked", "resolution": 100})
    assert found["data.resolution"].endswith("the nearest sizes are 96 or 104")
    assert "data.resolution" not in problems(data={"kind": "masked", "resolution": 104})


def test_exports_must_take_what_the_policy_ends_in() -> None:
    explicit = problems(freezing="embedding", exports=["diffusers"])
    assert 'freezing kind "embedding" ends in embedding' in explicit["exports"]
    assert "exports" not in problems(freezing="embedding")
    [auto] = checks.preflight(Job.model_validate({**JOB, "data": Masked(), "freezing": Strange()}))
    assert "for which exports: auto has no format" in auto.message
    assert "exports" not in problems(freezing="components")
    assert "exports" not in problems(freezing="components", exports=["diffusers"])
    job = Job.model_validate(
        {**JOB, "data": Masked(), "freezing": Embedding(), "exports": [Fits()]}
    )
    assert not [p for p in checks.preflight(job) if p.at == ("exports",)]


def test_a_model_that_cannot_be_read_is_a_problem_among_others(tmp_path: Path) -> None:
    found = problems(
        model={"kind": "stable_diffusion", "source": str(tmp_path / "gone")},
        loss={"kind": "needy", "wants": ["mask"]},
    )
    assert "model.source" in found
    assert "loss" in found


def test_a_check_that_fails_blames_the_plugin() -> None:
    assert problems(freezing={"kind": "embedding", "fault": "user"})["freezing"] == (
        "cannot tell; look"
    )
    with pytest.raises(PluginError, match=r'freezing "embedding", check\(\) \(.*\): .*oops'):
        problems(freezing={"kind": "embedding", "fault": "bug"})


def test_problems_have_their_places_where_the_file_is_known(good: Path) -> None:
    good.write_text(GOOD.replace("64", "100"))
    with pytest.raises(JobErrors, match=re.escape(f"{good}:3:50: 100 is not")):
        check_job(good)
    with pytest.raises(JobErrors, match=r"-o data.resolution=100: 100 is not"):
        check_job(good, ["data.resolution=100"])
    with pytest.raises(JobErrors, match=r"job: data.resolution: 100 is not"):
        checks.require(load_job(good))
