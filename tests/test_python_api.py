"""The product from Python: the same jobs, the same words, nothing printed, everything returned."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import dreambooth
from dreambooth import Job, JobError, Notebook, UserError
from dreambooth.engine.watching.notebook import curve, in_notebook
from dreambooth.jobs.loading import dump_job

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def base():
    return {
        "subject": {"identifier": "ohwx", "class_noun": "dog"},
        "data": {"kind": "folder", "path": "pictures"},
        "model": {"kind": "stable_diffusion", "source": "builtin:tiny"},
    }


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            {"train": {"stesp": 3}},
            'Job(train.stesp): unknown key "stesp"; did you mean "steps"?',
        ),
        ({"losss": "x"}, 'Job(losss): unknown key "losss"; did you mean "loss"?'),
        (
            {"loss": {"kind": "prior_preservatoin"}},
            'Job(loss.kind): unknown loss kind "prior_preservatoin"; '
            'did you mean "prior_preservation"?',
        ),
        ({"train": {"steps": "many"}}, "Job(train.steps): train.steps must be a whole number"),
        ({"trackers": "none"}, 'trackers must be a list, is "none"; write [] for none'),
        ({"subject": None}, "Job(subject)"),
    ],
)
def test_faults_of_a_job_are_told_as_on_the_command_line(base, wrong, said):
    with pytest.raises(JobError) as caught:
        Job(**{**base, **wrong})
    assert said in str(caught.value)
    assert "pydantic" not in str(caught.value)


def test_all_faults_at_once_and_what_is_missing(base):
    with pytest.raises(JobError) as caught:
        Job(data=base["data"], train={"stesp": 1}, log={"every": 0})
    told = str(caught.value).splitlines()
    places = {line.split(")")[0] for line in told}
    assert places == {"Job(train.stesp", "Job(log.every", "Job(subject"}


def test_reading_a_file_still_goes_past_the_words_for_python(base):
    """A job read from JSON keeps strict types and the folder that relative paths start from."""
    text = json.dumps({**base, "train": {"steps": "3"}})
    with pytest.raises(ValueError, match="valid integer"):
        Job.model_validate_json(text, strict=True)
    job = Job.model_validate_json(json.dumps(base), strict=True, context={"base": Path("/base")})
    assert job.data.path == Path("/base/pictures")


def test_validate_takes_jobs_and_files_and_settles_them(small_job, tmp_path):
    job = small_job(subject={"identifier": "auto"})
    settled = dreambooth.validate(job)
    assert settled.subject.identifier != "auto"
    file = tmp_path / "job.yaml"
    file.write_text(dump_job(job))
    assert dreambooth.validate(file).subject == settled.subject
    assert dreambooth.validate(str(file), ["train.steps=7"]).train.steps == 7
    with pytest.raises(JobError, match="is not a multiple of"):
        dreambooth.validate(small_job(data={"resolution": 33}))
    file.write_text(file.read_text().replace("resolution: 32", "resolution: 33"))
    with pytest.raises(JobError, match=r"job\.yaml:\d+:\d+: .*not a multiple of"):
        dreambooth.validate(file)


def test_plan_says_what_trains_and_writes_nothing(small_job, tmp_path):
    job = small_job()
    planned = dreambooth.plan(job)
    assert sum(part.trainable for part in planned.parts) > 0
    assert not job.folder.exists()
    chosen = small_job(freezing={"kind": "patterns", "train": ["unet.*attn2.to_k.weight"]})
    names = dreambooth.plan(chosen).trains
    assert set(names) < set(planned.trains)
    assert all(n.startswith("unet.") and n.endswith("attn2.to_k.weight") for n in names)


def test_run_sample_and_export_work_on_what_run_returned(small_job, capsys, tmp_path):
    job = small_job(
        freezing={"kind": "adapter", "method": {"kind": "lora", "rank": 2}}, train={"steps": 3}
    )
    result = dreambooth.run(job)
    assert capsys.readouterr().out == ""
    assert [step for step, _ in result.history["train/loss"]] == [1, 2, 3]
    assert result.history["train/loss"][-1][1] == result.scalars["train/loss"]
    drawn = dreambooth.sample(result, "a {class_noun}", count=2, size=32, out=tmp_path / "drawn")
    assert [file.name for file in drawn.files] == ["000.png", "001.png"]
    assert all(file.is_file() for file in drawn.files)
    assert drawn.step == 3
    made = dreambooth.export(result, "kohya", options={"dtype": "fp16"}, dest=tmp_path / "kohya")
    assert list(made.folder.glob("*.safetensors"))
    assert made.check.ok
    again = dreambooth.run(job)
    assert again.already_finished
    assert again.history == result.history
    with pytest.raises(JobError, match='did you mean "dtype"'):
        dreambooth.export(result, "kohya", options={"dtpye": "fp16"})
    with pytest.raises(JobError, match="not there"):
        dreambooth.sample(tmp_path / "nowhere", "x")


def test_history_goes_over_the_lives_of_a_run_and_survives_a_torn_line(small_job):
    whole = dreambooth.run(small_job(name="whole", prior="none", train={"steps": 4})).history
    dreambooth.run(small_job(prior="none", train={"steps": 2}))
    result = dreambooth.run(small_job(prior="none", train={"steps": 4}))
    assert result.history["train/loss"] == whole["train/loss"]
    file = result.folder / "metrics.jsonl"
    file.write_text('{"step": 1, "train/loss": null}\n{"step": 2, "train')
    [(step, value)] = result.history["train/loss"]
    assert step == 1
    assert math.isnan(value)
    file.write_text("{}\n{}\n")
    with pytest.raises(UserError, match="line 1 of"):
        _ = result.history
    file.unlink()
    assert result.history == {}


def test_a_run_without_exports_ends_in_its_checkpoint(small_job, dbt, tmp_path):
    job = small_job(exports=[], prior="none", train={"steps": 2})
    result = dreambooth.run(job)
    assert result.checks == ()
    assert result.final == job.folder / "checkpoints" / result.final.name
    assert result.final.is_dir()
    assert not (job.folder / "final").exists()
    assert dreambooth.run(job).already_finished
    drawn = dreambooth.sample(result, "a {class_noun}", count=1, size=32)
    assert (drawn.step, drawn.source) == (2, result.final.name)
    (tmp_path / "job.yaml").write_text(dump_job(job))
    told = dbt("run", "job.yaml", cwd=tmp_path).stdout
    assert f"checkpoints/{result.final.name}" in told
    assert dreambooth.export(result, "diffusers").check.ok


def test_a_run_with_jobs_that_dbt_would_refuse_is_refused_the_same(small_job):
    with pytest.raises(JobError, match="is not a multiple of"):
        dreambooth.run(small_job(data={"resolution": 33}))


class Cell:
    """Stands in for IPython: keeps what the cell shows."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def update(self, html: str) -> None:
        self.shown.append(html)


@pytest.fixture
def kernel(monkeypatch):
    """A Jupyter kernel, as far as the reporter looks at one."""
    cell = Cell()
    shell = type("ZMQInteractiveShell", (), {})()
    ipython, display = ModuleType("IPython"), ModuleType("IPython.display")
    ipython.get_ipython = lambda: shell  # type: ignore[attr-defined]
    display.HTML = str  # type: ignore[attr-defined]

    def show(html, display_id):
        assert display_id
        cell.update(html)
        return cell

    display.display = show  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr("dreambooth.engine.watching.notebook.EVERY", 0.0)
    return cell


def test_in_a_notebook_a_run_keeps_one_cell_up_to_date(kernel, small_job):
    """As a notebook would: run, then sample, with nothing said about reporters."""
    job = small_job(prior="none", train={"steps": 3}, samples={"every": 3, "per_prompt": 1})
    dreambooth.run(job)
    last = kernel.shown[-1]
    assert "<progress value=3 max=3>" in last
    assert "step 3 of 3" in last
    assert "<polyline" in last
    assert "data:image/png;base64," in last
    assert "Drawing" in "".join(kernel.shown)
    dreambooth.sample(job.folder, "a {class_noun}", count=1)


def test_elsewhere_the_notebooks_reporter_says_lines(capsys):
    assert not in_notebook()
    reporter = Notebook()
    reporter.info("one")
    reporter.warn("two")
    reporter.step(3)
    assert capsys.readouterr().out == "one\nwarning: two\n"


def test_the_cell_escapes_strangers_texts():
    reporter = Notebook()
    reporter.lines.append("<script>x</script>")
    reporter.work = "<b>"
    assert "<script>" not in reporter.html()
    assert "<b>" not in reporter.html()


def test_a_curve_leaves_out_what_is_not_finite():
    drawn = curve([(1, 2.0), (2, math.nan), (3, math.inf), (4, 1.0)])
    [points] = re.findall(r'points="([^"]*)"', drawn)
    assert points == "0.0,0.0 480.0,90.0"
    assert "loss 1.0000 (1.0000 to 2.0000)" in drawn
    assert curve([(1, math.nan), (2, 1.0)]) == ""


def test_every_public_function_says_what_it_does_and_has_types():
    for name in ("validate", "plan", "run", "sample", "export"):
        function = getattr(dreambooth, name)
        assert function.__doc__
        assert set(function.__annotations__) >= {"return"}
        assert name in dir(dreambooth)


def test_the_readmes_python_blocks_run(tmp_path, monkeypatch, tiny_model):
    """As printed, one after the other in one session; with the base and the steps of a test."""
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (64, 64), (90, 40, 20)).save(tmp_path / "pictures/a.png")
    text = (ROOT / "plugins/guides/python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) >= 2
    short = (
        'train={"steps": 2}, samples={"every": 0}, '
        'prior={"kind": "generated", "count": 1}, sampler={"kind": "cfg", "steps": 2},'
    )
    session: dict[str, object] = {"print": lambda *what: said.append(what)}
    said: list[object] = []
    for block in blocks:
        code = block.replace("path/to/stable-diffusion-v1-5", "builtin:tiny")
        pictures = '"path": "pictures"},'
        code = code.replace(pictures, f'"path": "pictures", "resolution": 32}}, {short}')
        exec(compile(code, "README.md", "exec"), session)
    assert said
    assert isinstance(session["result"], dreambooth.RunResult)
    assert SimpleNamespace(**session).drawn.grid.is_file()
