"""A safety checker looks at what people see, before it is written, and at nothing else."""

from __future__ import annotations

import json
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from dreambooth import JobError, SafetyChecker, evaluate, hookimpl, run, sample
from dreambooth.component.door import WrongAnswer
from dreambooth.engine.results.safety import BLURRED, EMPTY, Verdict, as_shown, highest
from dreambooth.helpers.scalars import logged_at, never_logged
from dreambooth.jobs.loading import dump_job
from dreambooth.plugins import component, registry_with

SEEN: list[int] = []


class Reddish(SafetyChecker):
    """Mean red, 0 to 1."""

    kind: Literal["reddish"] = "reddish"
    threshold: float = -1.0
    """Everything is unsafe."""

    def scores(self, images, device):
        SEEN.append(len(images))
        return [float(np.asarray(image)[..., 0].mean()) / 255 for image in images]


class Plugin:
    @hookimpl
    def register_safety(self):
        return [Reddish]


@pytest.fixture(autouse=True)
def plugin():
    SEEN.clear()
    with registry_with(Plugin()):
        yield


@pytest.fixture
def job(small_job, tiny_model):
    """A job on a model that is not embedded, which draws two samples twice."""

    def make(**sections):
        model = {"kind": "stable_diffusion", "source": str(tiny_model)}
        samples = {"every": 2, "per_prompt": 1}
        return small_job(model=model, samples=samples, train={"steps": 2}, exports=[], **sections)

    return make


def read(path):
    with Image.open(path) as image:
        return image.copy()


def colours(image):
    return {colour for _, colour in image.convert("RGB").getcolors()}


def record(folder):
    return json.loads((folder / "prompts.json").read_text())


def test_samples_are_looked_at_and_class_pictures_are_not(job):
    made = run(job(safety={"kind": "reddish", "action": "blur"}))
    assert SEEN == [2, 2]  # two prompts before the first and after the last step; four class images
    rows = record(made.folder / "samples" / "step-000002")
    for row in rows:
        assert row["safety"]["checker"] == "reddish"
        assert row["safety"]["unsafe"]
        assert row["safety"]["action"] == "blur"
        with Image.open(made.folder / "samples" / "step-000002" / row["file"]) as image:
            assert json.loads(image.text["dreambooth"])["safety"] == row["safety"]
            few = image.resize((BLURRED, BLURRED), Image.Resampling.BOX)
            again = few.resize(image.size, Image.Resampling.BICUBIC)
            assert np.abs(np.asarray(again, int) - np.asarray(image, int)).max() < 40
    logged = dict(made.history["safety/reddish"])
    assert logged[2] == pytest.approx(max(row["safety"]["score"] for row in rows))
    said = (made.folder / "run.log").read_text()
    assert "safety: 2 of 2 pictures blurred by reddish" in said

    SEEN.clear()
    safe = Reddish(threshold=2.0, action="refuse")
    kept, off, refused, fine = (
        sample(made, "a {class_noun}", count=1, seed=4, safety=s)
        for s in ("flag", "off", "refuse", safe)
    )
    assert SEEN == [1, 1, 1]
    plain = read(off.files[0]).tobytes()
    assert read(kept.files[0]).tobytes() == plain
    assert read(fine.files[0]).tobytes() == plain
    assert [record(d.files[0].parent)[0]["safety"]["unsafe"] for d in (kept, fine)] == [True, False]
    assert "safety" not in record(off.files[0].parent)[0]
    assert colours(read(refused.files[0])) == {EMPTY}
    assert len(set(plain)) > 1


def test_an_embedded_bases_pictures_are_not_looked_at(small_job):
    section = {"kind": "reddish", "action": "refuse"}
    samples = {"every": 1, "per_prompt": 1}
    made = run(small_job(safety=section, samples=samples, train={"steps": 1}, exports=[]))
    assert SEEN == []
    assert "safety" not in record(made.folder / "samples" / "step-000001")[0]
    sample(made, "a {class_noun}", count=1)
    assert SEEN == []


def test_another_checker_may_be_switched_on_for_a_run_that_is_there(job):
    made = run(job())
    again = run(job(safety="reddish"))  # a change that touches nothing learned
    assert again.folder == made.folder
    with pytest.raises(JobError, match="--safety blur: the run's job names no checker") as caught:
        sample(made, "x", count=1, safety="blur")
    assert "reddish" in caught.value.hint
    sample(made, "x", count=1, safety="reddish")
    assert SEEN == [1]


@pytest.mark.slow
def test_what_an_evaluation_draws_is_looked_at_and_drawn_anew_for_another_checker(job):
    made = run(job(safety="reddish"))
    SEEN.clear()
    measure = [component("metric", "diversity")]
    evaluate(made, measure, prompts=["a photo of a {class_noun}"], images_per_prompt=1)
    seen = list(SEEN)
    assert seen
    where = made.folder / "evaluations" / "pictures" / "step-000002"
    assert all(row["checker"]["kind"] == "reddish" for row in record(where))
    assert all(row["safety"]["unsafe"] for row in record(where))
    evaluate(made, measure, prompts=["a photo of a {class_noun}"], images_per_prompt=1)
    assert seen == SEEN  # kept
    (made.folder / "job.yaml").write_text(dump_job(job()))  # the same run without a checker
    evaluate(made, measure, prompts=["a photo of a {class_noun}"], images_per_prompt=1)
    assert not any("checker" in row or "safety" in row for row in record(where))


def test_the_command_takes_an_action_or_a_kind(job, dbt, tmp_path):
    made = run(job(safety="reddish"))
    SEEN.clear()
    said = dbt("sample", made.folder, "a dog", "-n", 1, "--safety", "refuse", cwd=tmp_path)
    assert said.returncode == 0
    assert "1 of 1 pictures left out by reddish" in said.stderr + said.stdout
    wrong = dbt("sample", made.folder, "a dog", "-n", 1, "--safety", "redish", cwd=tmp_path)
    assert wrong.returncode == 2
    assert '--safety redish: unknown safety kind "redish"; did you mean "reddish"' in wrong.stderr
    assert SEEN == [1]


def test_wrong_answers_are_refused():
    class Short(Reddish):
        kind: Literal["short"] = "short"

        def scores(self, images, device):
            return [0.5]

    class Odd(Reddish):
        kind: Literal["odd"] = "odd"

        def scores(self, images, device):
            return [float("nan") for _ in images]

    two = [Image.new("RGB", (8, 8))] * 2
    for checker in (Short(), Odd()):
        with pytest.raises(WrongAnswer, match="a list of 2 finite numbers, a score a picture"):
            checker.scores(two, "cpu")


def test_what_is_shown_of_an_unsafe_picture():
    image = Image.effect_noise((64, 48), 90).convert("RGB")
    safe = Verdict("x", 0.1, False, "refuse")
    assert as_shown(image, safe) is image
    assert as_shown(image, Verdict("x", 0.9, True, "flag")) is image
    blurred = as_shown(image, Verdict("x", 0.9, True, "blur"))
    assert blurred.size == image.size
    assert np.asarray(blurred, float).std() < np.asarray(image, float).std() / 5
    assert colours(as_shown(image, Verdict("x", 0.9, True, "refuse"))) == {EMPTY}
    found = highest(
        [safe, None, Verdict("x", 0.9, True, "flag"), Verdict("y", -0.1, False, "flag")]
    )
    assert found == {"safety/x": 0.9, "safety/y": -0.1}


def test_the_number_is_new_with_samples_and_missing_without_a_checker(small_job):
    assert logged_at("safety/reddish") == "sample"
    problem = never_logged(small_job(), "safety/reddish", ("early_stop",))
    assert problem is not None
    assert "no checker looks at samples" in problem.message
    assert "set samples.every" in never_logged(small_job(safety="reddish"), "safety/x", ()).hint
    drawing = small_job(safety="reddish", samples={"every": 1})
    assert never_logged(drawing, "safety/reddish", ()) is None
