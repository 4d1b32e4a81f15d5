"""`dbt evaluate`: numbers of a trained run, and what is missing told before any work."""

from __future__ import annotations

import csv
import io
import json
import shutil

import pytest

from dreambooth.engine.loop import run
from dreambooth.interfaces import Evaluation, Score
from dreambooth_plugins.evaluate.showing import best_of

JUDGE = ("--encoder", "emoji-64-clip")


@pytest.fixture(scope="module")
def trained(request, tmp_path_factory):
    """A run of four steps with samples at 0, 2 and 4."""
    from PIL import Image

    from dreambooth.job import Job

    root = tmp_path_factory.mktemp("evaluate")
    (root / "pictures").mkdir()
    for i, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (40, 40), colour).save(root / f"pictures/{i}.png")
    job = Job(
        name="small",
        output=root / "runs",
        model={"kind": "stable_diffusion", "source": "builtin:tiny"},
        subject={"identifier": "ohwx", "class_noun": "dog"},
        data={"kind": "folder", "path": root / "pictures", "resolution": 32},
        prior="none",
        sampler={"kind": "cfg", "steps": 2},
        samples={"every": 2, "per_prompt": 2},
        train={"steps": 4, "precision": "fp32"},
        trackers=["jsonl"],
        findings=[],
    )
    return run(job).folder


@pytest.fixture
def copy(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "runs/small")
    return tmp_path / "runs/small"


def test_it_draws_before_and_after_once_and_writes_the_file(copy, dbt, tmp_path):
    shown = dbt("evaluate", copy, *JUDGE, "--images-per-prompt", 2, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "small at step 4: 10 pictures, 3 photographs" in shown.stdout
    [path] = copy.glob("evaluations/step-000004-*.json")
    assert f"written to evaluations/{path.name}" in shown.stdout
    data = json.loads(path.read_text())
    assert (data["version"], data["step"], data["encoder"]) == (1, 4, "emoji-64-clip")
    names = [m["name"] for m in data["metrics"]]
    assert names == [
        "subject_similarity",
        "prompt_alignment",
        "prior_preservation",
        "diversity",
        "drift",
        "copying",
        "photo_distance",
    ]
    likeness = data["metrics"][0]
    assert likeness.keys() >= {"value", "stderr", "n", "baseline", "real", "better"}
    assert all(m["baseline"] is not None for m in data["metrics"])
    assert len(data["pictures"]) == 10
    assert "subject_similarity" in data["pictures"][0]["values"]
    prompts = {p["prompt"] for p in data["pictures"]}
    assert {"a photo of ohwx dog", "a photo of a dog", "a photo of a house"} <= prompts
    [drawn] = copy.glob("evaluations/pictures/*/step-000000/000.png")
    before = drawn.stat().st_mtime_ns
    first = path.read_bytes()
    again = dbt("evaluate", copy, *JUDGE, "--images-per-prompt", 2, cwd=tmp_path)
    assert again.returncode == 0
    assert "Drawing" not in again.stdout
    assert path.read_bytes() == first
    assert drawn.stat().st_mtime_ns == before


def lying(run):
    """Return what lies in a run's evaluations: name -> content."""
    files = [run / "findings.json", *run.glob("evaluations/*.json")]
    return {path.name: path.read_bytes() for path in files if path.is_file()}


def test_what_was_measured_otherwise_lies_beside_and_replaces_nothing(copy, dbt, tmp_path):
    """The run's own samples; the same through other eyes; prompts drawn anew; more of them."""
    text = (copy / "job.yaml").read_text().replace("findings: []", "findings: auto")
    (copy / "job.yaml").write_text(text)
    calls = (
        ("--all-steps", *JUDGE),
        ("--all-steps", "--encoder", "emoji-128-clip"),
        ("--images-per-prompt", 1, *JUDGE),
        ("--images-per-prompt", 2, *JUDGE),
    )
    found = [lying(copy)]
    for call in calls:
        answer = dbt("evaluate", copy, *call, cwd=tmp_path)
        assert answer.returncode == 0, answer.stderr
        found.append(lying(copy))
        assert found[-2].items() <= found[-1].items(), call
    # The first ones are the run's own; each of the others brings numbers and findings.
    assert found[1].keys() == {"step-000002.json", "step-000004.json", "findings.json"}
    assert len(found[2]) == len(found[1]) + 3
    assert len(found[4]) == len(found[3]) + 2 == len(found[2]) + 4
    again = dbt("evaluate", copy, *calls[0], cwd=tmp_path)
    assert again.returncode == 0
    assert lying(copy) == found[-1]


def test_all_steps_measures_the_samples_and_names_the_best(copy, dbt, tmp_path):
    shown = dbt("evaluate", copy, *JUDGE, "--all-steps", "--csv", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    rows = list(csv.DictReader(io.StringIO(shown.stdout)))
    assert {row["step"] for row in rows} == {"2", "4"}
    assert {row["encoder"] for row in rows} == {"emoji-64-clip", "pixels"}
    data = json.loads(dbt("evaluate", copy, *JUDGE, "--all-steps", "--json", cwd=tmp_path).stdout)
    likeness = {e["step"]: e["metrics"][0]["value"] for e in data["evaluations"]}
    assert data["best"]["step"] in likeness
    assert not (copy / "evaluations/pictures").exists()


def test_dreambenchs_prompts_come_along():
    from dreambooth.jobs.samplers import read_prompts
    from dreambooth_plugins.evaluate.command import SETS, _prompts

    for name in SETS:
        entries = read_prompts(_prompts(name))
        assert len(entries) == 25
        assert all("{identifier} {class_noun}" in e.prompt for e in entries)


def test_a_file_of_prompts_is_drawn(copy, dbt, tmp_path):
    (tmp_path / "p.yaml").write_text(
        "prompts: [{prompt: 'a {identifier} {class_noun}', seed: 5}]\n"
    )
    shown = dbt(
        "evaluate", copy, *JUDGE, "--prompts", "p.yaml", "--images-per-prompt", 1, "--json",
        cwd=tmp_path,
    )  # fmt: skip
    [found] = json.loads(shown.stdout)["evaluations"]
    assert found["pictures"][0] == {
        "prompt": "a ohwx dog",
        "seed": 5,
        "values": found["pictures"][0]["values"],
    }
    names = {m["name"] for m in found["metrics"]}
    assert "diversity" not in names  # a single picture of a prompt has no other


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--encoder", "away"), 'there is no encoder "away"'),
        (("--step", "3", *JUDGE), "keeps no weights of step 3"),
        (("--prompts", "p.yaml", *JUDGE), 'p.yaml:1:23: unknown key "sede"; did you mean "seed"?'),
        (("--prompts", "none.yaml", *JUDGE), "none.yaml: no such file"),
        (("--all-steps", "--step", "2", *JUDGE), "leave --prompts and --step out"),
        (("--json", "--csv", *JUDGE), "exclude each other"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_drawn(copy, dbt, tmp_path, arguments, said):
    (tmp_path / "p.yaml").write_text("prompts: [{prompt: a, sede: 1}]\n")
    answer = dbt("evaluate", copy, *arguments, cwd=tmp_path)
    assert answer.returncode == 2
    assert said in answer.stderr.replace("\n", " ")
    assert not (copy / "evaluations").exists()


def test_deleted_runs_and_pictures_are_told(copy, dbt, tmp_path):
    answer = dbt("evaluate", tmp_path / "gone", *JUDGE, cwd=tmp_path)
    assert answer.returncode == 2
    assert "not there" in answer.stderr
    (copy / "samples/step-000002/001.png").unlink()
    answer = dbt("evaluate", copy, "--all-steps", *JUDGE, cwd=tmp_path)
    assert answer.returncode == 1
    assert "samples/step-000002 is not whole: 3 pictures can be read" in answer.stderr
    shutil.rmtree(copy / "samples")
    answer = dbt("evaluate", copy, "--all-steps", *JUDGE, cwd=tmp_path)
    assert "no samples that were drawn while training" in " ".join(answer.stderr.split())
    shutil.rmtree(copy / "checkpoints")
    shutil.rmtree(copy / "final")
    answer = dbt("evaluate", copy, *JUDGE, cwd=tmp_path)
    assert "neither a result nor a checkpoint" in " ".join(answer.stderr.split())


def test_the_best_step_is_the_likest_that_still_obeys(tmp_path):
    def at(step, like, free):
        scores = [
            Score("subject_similarity", like, "E", 0.01, 8),
            Score("prompt_alignment", free, "E", 0.005, 8),
        ]
        return Evaluation(step, scores, [], tmp_path / "x")

    found = best_of([at(100, 0.5, 0.30), at(200, 0.6, 0.295), at(300, 0.8, 0.2)])
    assert found is not None
    assert found[0] == 200
    assert "1 other" in found[1]


def test_the_benchmark_walks_subjects_and_goes_on_where_it_was_cut(
    small_job, dbt, tmp_path, monkeypatch
):
    from PIL import Image

    from dreambooth.jobs.loading import dump_job
    from dreambooth_plugins.evaluate import benchmark

    bench = tmp_path / "bench"
    for name, colour in (("dog6", "red"), ("fancy_boot", "blue")):
        (bench / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (40, 40 + i), colour).save(bench / name / f"{i:02d}.jpg")
    (bench / "prompts_and_classes.txt").write_text("subject_name,class\nfancy_boot,boot\n")
    found = benchmark.cases(bench)
    assert [(c.name, c.class_noun, c.prompts.stem) for c in found] == [
        ("dog6", "dog", "dreambench-live"),
        ("fancy_boot", "boot", "dreambench-object"),
    ]
    job = small_job(name="bench", prior="none", train={"steps": 1}, sampler={"steps": 1})
    (tmp_path / "recipe.yaml").write_text(dump_job(job))
    call = ("evaluate", "recipe.yaml", "--benchmark", "bench", *JUDGE, "--images-per-prompt", 1)
    for_one = benchmark.job_for
    seen = []

    def cut_at_the_second(recipe, case):
        seen.append(case.name)
        return for_one(recipe, case)

    def stop(folder, *_, **__):
        if "fancy" in str(folder):
            raise KeyboardInterrupt
        return evaluate(folder, *_, **__)

    from dreambooth import api

    evaluate = api.evaluate
    with monkeypatch.context() as patch:
        patch.setattr(benchmark, "job_for", cut_at_the_second)
        patch.setattr(api, "evaluate", stop)
        assert dbt(*call, cwd=tmp_path).returncode != 0
    runs = tmp_path / "runs"
    [picture] = runs.glob("bench-dog6/evaluations/pictures/*/step-000001/000.png")
    before = picture.stat().st_mtime_ns
    assert not (runs / "bench-fancy_boot/evaluations").exists()
    shown = dbt(*call, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert picture.stat().st_mtime_ns == before
    rows = [line.split() for line in shown.stdout.splitlines()]
    assert [row[0] for row in rows if row and row[0] in {"dog6", "fancy_boot", "mean"}] == [
        "dog6",
        "fancy_boot",
        "mean",
    ]
    data = json.loads(dbt(*call, "--json", cwd=tmp_path).stdout)
    assert [row["subject"] for row in data["rows"]] == ["dog6", "fancy_boot", "mean"]
    likeness = [row["subject_similarity"] for row in data["rows"]]
    assert likeness[2] == pytest.approx((likeness[0] + likeness[1]) / 2)


def test_a_benchmark_of_nothing_is_told(tmp_path):
    (tmp_path / "empty").mkdir()
    from dreambooth.errors import JobError
    from dreambooth_plugins.evaluate.benchmark import cases

    with pytest.raises(JobError, match="no folder with pictures"):
        cases(tmp_path / "empty")
    with pytest.raises(JobError, match="there is no folder"):
        cases(tmp_path / "away")
