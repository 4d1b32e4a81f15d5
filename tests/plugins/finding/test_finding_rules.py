"""Each rule speaks where its threshold is passed, and is silent just before."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dreambooth import FindingRule, hookimpl
from dreambooth.interfaces import Evaluation, Finding, RunRecord, Score, Subject
from dreambooth.plugins import registry_with
from dreambooth_plugins.finding.measured import (
    ClassChanged,
    Copies,
    Learned,
    PromptsIgnored,
    TooFew,
)
from dreambooth_plugins.finding.photographs import AlikePhotographs


def job(prior=True):
    return SimpleNamespace(
        subject=Subject(identifier="ohwx", class_noun="dog"),
        prior=SimpleNamespace(has_rows=lambda: prior),
    )


def score(name, value, baseline=None, real=None, error=0.01, n=12, pictures=None):
    change = None if baseline is None else (value - baseline, error)
    return Score(name, value, "E", error, n, baseline, change, real, pictures=pictures or {})


def record(*steps, photos=5, prior=True):
    """Steps of lists of scores, 100 apart."""
    made = [Evaluation(100 * (i + 1), s, [], Path("x")) for i, s in enumerate(steps)]
    return RunRecord(job(prior), made, [(f"{i}.png", noise(i)) for i in range(photos)])


def noise(seed):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return small.resize((64, 64), Image.Resampling.BICUBIC)


def marks(rule, *args, **options):
    return [f.mark for f in rule.judge(record(*args, **options))]


@pytest.mark.parametrize(
    ("value", "mark"),
    [(0.71, "good"), (0.49, "good"), (0.47, "look"), (0.36, "look"), (0.34, "problem")],
)
def test_learned_by_the_share_of_the_way(value, mark):
    steps = [score("subject_similarity", value, baseline=0.24, real=0.72)]
    assert marks(Learned(), steps) == [mark]


def test_a_rise_within_its_error_is_none():
    steps = [score("subject_similarity", 0.6, baseline=0.24, real=0.72, error=0.2)]
    [finding] = Learned().judge(record(steps))
    assert finding.mark == "problem"
    assert "has not learned your dog" in finding.sentence
    assert "(E), step-000100" in finding.evidence


def test_a_base_as_near_as_photographs_are_goes_by_the_rise():
    near = [score("subject_similarity", 0.36, baseline=0.33, real=0.30)]
    far = [score("subject_similarity", 0.45, baseline=0.33, real=0.30)]
    assert (marks(Learned(), near), marks(Learned(), far)) == (["problem"], ["good"])


def test_copies_need_a_share_of_the_pictures():
    # The limit is 0.6 + 0.8 * 0.4 = 0.92.
    few = [score("copying", 0.7, real=0.6, pictures={0: 0.93, 1: 0.91, 2: 0.93, 3: 0.8, 4: 0.8})]
    many = [score("copying", 0.7, real=0.6, pictures={0: 0.93, 1: 0.91, 2: 0.95, 3: 0.93, 4: 0.8})]
    assert marks(Copies(), few) == []
    [finding] = Copies().judge(record(few, many))
    assert finding.mark == "problem"
    assert "3 of 5 pictures" in finding.sentence
    assert "picture 2" in finding.evidence
    assert "earlier step than 200" in finding.next


def test_a_soft_copy_is_told_by_its_pixels():
    """An encoder finds it far from the photograph that it repeats place for place."""
    far = score("copying", 0.6, real=0.82, pictures=dict.fromkeys(range(4), 0.6))
    near = score("photo_distance", 0.05, real=0.2, pictures={0: 0.05, 1: 0.06, 2: 0.08, 3: 0.2})
    [finding] = Copies().judge(record([far, near]))
    assert "2 of 4 pictures" in finding.sentence
    apart = score("photo_distance", 0.1, real=0.2, pictures={0: 0.05, 1: 0.08, 2: 0.08, 3: 0.2})
    assert marks(Copies(), [far, apart]) == []
    # One photograph has no other one to be near to: pixels tell.
    alone = score("copying", 0.9, pictures=dict.fromkeys(range(4), 0.9))
    assert marks(Copies(), [alone, near]) == ["problem"]


@pytest.mark.parametrize(("value", "said"), [(0.57, []), (0.60, ["problem"]), (0.39, [])])
def test_class_changed_by_the_share_of_the_way(value, said):
    steps = [score("prior_preservation", value, baseline=0.40, real=0.90)]
    assert marks(ClassChanged(), steps) == said


def test_class_changed_says_what_helps_by_the_jobs_prior():
    steps = [score("prior_preservation", 0.70, baseline=0.47, real=0.60)]
    with_prior, without = (
        ClassChanged().judge(record(steps, prior=p))[0].next for p in (True, False)
    )
    assert "prior_weight" in with_prior
    assert "prior: generated" in without
    # Photographs on grounds of many colours are no nearer to each other than the class is.
    flat = [score("prior_preservation", 0.44, baseline=0.33, real=0.30)]
    assert marks(ClassChanged(), flat) == ["problem"]


def test_prompts_ignored_names_the_first_step_from_which_it_stays_so():
    at = [score("prompt_contrast", v, baseline=0.36) for v in (0.1, 0.36, 0.17, 0.02)]
    [finding] = PromptsIgnored().judge(record(*[[s] for s in at]))
    assert "From step 300 on" in finding.sentence
    assert marks(PromptsIgnored(), [at[0]], [at[1]]) == []
    [alone] = PromptsIgnored().judge(record([at[0]]))  # since when, nobody measured
    assert "From step" not in alone.sentence
    slight = [score("prompt_contrast", 0.19, baseline=0.36)]
    assert marks(PromptsIgnored(), slight) == []
    noisy = [score("prompt_contrast", 0.1, baseline=0.36, error=0.14)]
    assert marks(PromptsIgnored(), noisy) == []


def test_a_subject_that_looks_unlike_its_class_noun_is_no_deaf_model():
    """The judge calls the photographs themselves an octopus by 0.22 only."""
    unlike = score("prompt_alignment", 0.36, baseline=0.62, real=0.22)
    assert marks(PromptsIgnored(), [unlike]) == []
    assert marks(PromptsIgnored(), [unlike, score("prompt_contrast", 0.33, baseline=0.36)]) == []
    assert marks(PromptsIgnored(), [unlike, score("prompt_contrast", 0.1, baseline=0.36)]) == [
        "problem"
    ]
    # With one prompt there is nothing else to go by.
    assert marks(PromptsIgnored(), [score("prompt_alignment", 0.19, baseline=0.28)]) == ["problem"]
    assert marks(PromptsIgnored(), [score("prompt_alignment", 0.23, baseline=0.28)]) == []


def test_too_few_pictures_or_photographs():
    enough = [score("subject_similarity", 0.5, n=8)]
    assert marks(TooFew(), enough) == []
    assert marks(TooFew(), enough, photos=2) == ["look"]
    [finding] = TooFew().judge(record([score("subject_similarity", 0.5, n=4, error=0.03)]))
    assert "5 photographs and 4 pictures" in finding.sentence
    assert "swing by 0.06" in finding.sentence


def test_photographs_that_are_almost_the_same_are_named():
    pytest.importorskip("imagehash")
    assert marks(AlikePhotographs(), []) == []
    twice = RunRecord(job(), [], [("a.png", noise(1)), ("b.png", noise(2)), ("c.png", noise(1))])
    [finding] = AlikePhotographs().judge(twice)
    assert finding.sentence.startswith("a.png and c.png are almost the same")


def test_nothing_measured_is_nothing_said():
    for rule in (Learned(), Copies(), ClassChanged(), PromptsIgnored(), TooFew()):
        assert list(rule.judge(record())) == []
        assert list(rule.judge(record([]))) == []


class Green(FindingRule):
    """Says that a run was green."""

    kind: str = "green"

    def judge(self, record):
        return [Finding("look", "It is green.", f"{len(record.evaluations)} steps", "Paint it.")]


def test_a_run_ends_with_findings_a_plugins_too_in_file_card_and_terminal(small_job, dbt, tmp_path):
    from typing import Literal

    from dreambooth.jobs.loading import dump_job

    class Mine(Green):
        """Says that a run was green."""

        kind: Literal["green"] = "green"

    plugin = SimpleNamespace(register_findings=hookimpl(lambda: [Mine]))
    with registry_with(plugin):
        job = small_job(samples={"every": 4, "per_prompt": 1})
        (tmp_path / "job.yaml").write_text(dump_job(job))
        shown = dbt("run", "job.yaml", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    data = json.loads((job.folder / "findings.json").read_text())
    assert data["version"] == 1
    rows = {row["id"]: row for row in data["findings"]}
    assert rows["green"] == {
        "id": "green",
        "mark": "look",
        "sentence": "It is green.",
        "evidence": "1 steps",
        "next": "Paint it.",
    }
    assert rows["too_few"]["mark"] == "look"
    assert "look     It is green." in shown.stdout
    assert "- It is green." in (job.folder / "final/README.md").read_text()
    evaluation = json.loads((job.folder / "evaluations/step-000004.json").read_text())
    assert evaluation["encoder"] == "ENet-I"
    assert [m["name"] for m in evaluation["metrics"]][:1] == ["subject_similarity"]


def test_an_empty_list_asks_nothing(small_job):
    from dreambooth.engine.loop import run

    result = run(small_job(samples={"every": 4, "per_prompt": 1}, findings=[]))
    assert not (result.folder / "findings.json").exists()
    assert not (result.folder / "evaluations").exists()
