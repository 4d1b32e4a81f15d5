"""Metrics through an encoder equal their formulas, computed here pair by pair in plain Python."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from dreambooth.interfaces import Drawing, Evidence, Subject
from dreambooth_plugins.metric.judge import measures
from dreambooth_plugins.metric.judge.encoders import Opened
from dreambooth_plugins.metric.judge.nearness import photo_distance

SUBJECT = Subject(identifier="ohwx", class_noun="dog")


class Colours:
    """An encoder a child understands: a picture's mean colour, a text's letters."""

    def pictures(self, images):
        return torch.tensor([list(vector(image)) for image in images])

    def texts(self, texts):
        return torch.tensor([[1.0 + t.count("a"), 1.0 + t.count("o"), len(t) / 10] for t in texts])


def vector(image):
    array = np.asarray(image.convert("RGB"), dtype=np.float64).mean((0, 1)) + 1
    # The left half counts more, so that a mirrored picture is another one.
    left = np.asarray(image.convert("RGB"), dtype=np.float64)[:, : image.width // 2].mean((0, 1))
    return array + left


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(x * x for x in b))


def noise(seed, size=(16, 16)):
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 256, (1, 2, 3), dtype=np.uint8)
    return Image.fromarray(base).resize(size, Image.Resampling.NEAREST)


PROMPTS = (
    "a photo of ohwx dog",
    "an OHWX dog on the moon",
    "ohwx dog asleep",
    "a photo of a dog",
    "a photo of a cup",
    "a tree",
)


def evidence(untrained=True, photos=3):
    drawings = [Drawing(noise(10 * i + k), p, k) for i, p in enumerate(PROMPTS) for k in range(2)]
    before = [Drawing(noise(500 + 10 * i + k), p, k) for i, p in enumerate(PROMPTS) for k in (1, 0)]
    return Evidence(
        drawings, [noise(900 + i) for i in range(photos)], SUBJECT, before if untrained else []
    )


@pytest.fixture
def encoder():
    return Opened(Colours(), "colours", torch.device("cpu"))


def named(found, part):
    return [d for d in found if part(d)]


def mean_over_prompts(values, drawings):
    by = {}
    for value, drawing in zip(values, drawings, strict=True):
        by.setdefault(drawing.prompt, []).append(value)
    means = [statistics.fmean(v) for v in by.values()]
    return statistics.fmean(means), statistics.stdev(means) / math.sqrt(len(means))


def test_prompts_are_told_apart_by_whole_words():
    e = evidence()
    assert [e.is_subject(Drawing(noise(0), p, 0)) for p in PROMPTS] == [True] * 3 + [False] * 3
    assert [e.is_class(Drawing(noise(0), p, 0)) for p in PROMPTS] == [False] * 3 + [
        True,
        False,
        False,
    ]
    assert not e.is_class(Drawing(noise(0), "a dogma", 0))


def test_subject_similarity_with_baseline_real_row_and_paired_change(encoder):
    e = evidence()
    [score] = measures.subject_similarity(e, encoder)
    photos = [vector(p) for p in e.instances]

    def like(drawing):
        return statistics.fmean(cosine(vector(drawing.image), p) for p in photos)

    chosen = named(e.drawings, e.is_subject)
    value, error = mean_over_prompts([like(d) for d in chosen], chosen)
    assert score.value == pytest.approx(value, abs=1e-5)
    assert score.stderr == pytest.approx(error, abs=1e-5)
    assert (score.n, score.encoder, score.better) == (6, "colours", "higher")
    pairs = [like(d) - like(e.before(d)) for d in chosen]
    change, spread = mean_over_prompts(pairs, chosen)
    assert score.change == pytest.approx((change, spread), abs=1e-5)
    assert score.baseline == pytest.approx(value - change, abs=1e-5)
    among = [cosine(a, b) for i, a in enumerate(photos) for j, b in enumerate(photos) if i != j]
    assert score.real == pytest.approx(statistics.fmean(among), abs=1e-5)
    assert score.pictures[0] == pytest.approx(like(e.drawings[0]), abs=1e-5)


def test_prompt_alignment_leaves_the_identifier_out(encoder):
    e = evidence()
    [score] = measures.prompt_alignment(e, encoder)
    texts = {
        "a photo of ohwx dog": "a photo of dog",
        "an OHWX dog on the moon": "an dog on the moon",
        "ohwx dog asleep": "dog asleep",
    }
    chosen = named(e.drawings, e.is_subject)
    values = [
        cosine(vector(d.image), Colours().texts([texts[d.prompt]])[0].tolist()) for d in chosen
    ]
    assert score.value == pytest.approx(mean_over_prompts(values, chosen)[0], abs=1e-5)


def test_prompt_contrast_is_what_a_prompt_has_over_the_others_that_name_the_subject(encoder):
    e = evidence()
    [score] = measures.prompt_contrast(e, encoder)
    texts = ["a photo of dog", "an dog on the moon", "dog asleep"]
    words = Colours().texts(texts).tolist()
    chosen = named(e.drawings, e.is_subject)
    values = []
    for drawing in chosen:
        own = PROMPTS.index(drawing.prompt)
        cosines = [cosine(vector(drawing.image), w) for w in words]
        others = [c for i, c in enumerate(cosines) if i != own]
        values.append(cosines[own] - statistics.fmean(others))
    assert score.value == pytest.approx(mean_over_prompts(values, chosen)[0], abs=1e-5)
    assert score.baseline is not None
    one = Evidence([d for d in e.drawings if d.prompt == PROMPTS[0]], e.instances, SUBJECT)
    assert measures.prompt_contrast(one, encoder) == []


def test_photo_distance_is_the_rms_of_pixels_to_the_nearest_photograph_or_its_mirror():
    e = evidence()
    [score] = photo_distance(e)

    def pixels(image):
        return list(image.convert("RGB").resize((16, 16), Image.Resampling.BOX).tobytes())

    def apart(a, b):
        pairs = zip(pixels(a), pixels(b), strict=True)
        return math.sqrt(statistics.fmean(((x - y) / 255) ** 2 for x, y in pairs))

    both = [*e.instances, *(ImageOps.mirror(i) for i in e.instances)]
    chosen = named(e.drawings, e.is_subject)
    values = [min(apart(d.image, p) for p in both) for d in chosen]
    assert score.value == pytest.approx(mean_over_prompts(values, chosen)[0], abs=1e-5)
    own = [min(apart(p, q) for q in e.instances if q is not p) for p in e.instances]
    assert score.real == pytest.approx(statistics.fmean(own), abs=1e-5)
    mirrored = Drawing(ImageOps.mirror(e.instances[0]), PROMPTS[0], 0)
    [copy] = photo_distance(Evidence([mirrored], e.instances, SUBJECT))
    assert copy.value == pytest.approx(0, abs=1e-9)


def test_prior_preservation_is_of_the_class_alone_and_lower_is_better(encoder):
    e = evidence()
    [score] = measures.prior_preservation(e, encoder)
    photos = [vector(p) for p in e.instances]
    chosen = named(e.drawings, e.is_class)
    assert len(chosen) == 2
    values = [statistics.fmean(cosine(vector(d.image), p) for p in photos) for d in chosen]
    assert score.value == pytest.approx(statistics.fmean(values), abs=1e-5)
    # One prompt: the error is that of its pictures.
    assert score.stderr == pytest.approx(statistics.stdev(values) / math.sqrt(2), abs=1e-5)
    assert score.better == "lower"


def test_diversity_is_within_a_prompt(encoder):
    e = evidence()
    [score] = measures.diversity(e, measures.cosine_distances(encoder), "colours")
    found = []
    for prompt in PROMPTS[:3]:
        a, b = (vector(d.image) for d in e.drawings if d.prompt == prompt)
        found.append(1 - cosine(a, b))
    assert score.value == pytest.approx(statistics.fmean(found), abs=1e-5)
    alone = Evidence(e.drawings[::2], e.instances, SUBJECT)
    assert measures.diversity(alone, measures.cosine_distances(encoder), "colours") == []


def test_drift_pairs_unrelated_prompts_by_prompt_and_seed(encoder):
    e = evidence()
    [score] = measures.drift(e, encoder)
    chosen = named(e.drawings, e.is_unrelated)
    values = [1 - cosine(vector(d.image), vector(e.before(d).image)) for d in chosen]
    assert score.value == pytest.approx(statistics.fmean(values), abs=1e-5)
    assert score.baseline == 0.0
    same = Evidence(e.drawings, e.instances, SUBJECT, e.drawings)
    assert measures.drift(same, encoder)[0].value == pytest.approx(0, abs=1e-6)
    assert measures.drift(evidence(untrained=False), encoder) == []


def test_copying_finds_the_nearest_crop_mirrored_too(encoder):
    e = evidence()
    mirrored = ImageOps.mirror(e.instances[1])
    copy = Evidence([Drawing(mirrored, PROMPTS[0], 0)], e.instances, SUBJECT)
    assert measures.copying(copy, encoder)[0].value == pytest.approx(1, abs=1e-6)
    [score] = measures.copying(e, encoder)
    both = [vector(p) for p in [*e.instances, *map(ImageOps.mirror, e.instances)]]
    assert score.pictures[3] == pytest.approx(
        max(cosine(vector(e.drawings[3].image), p) for p in both), abs=1e-5
    )
    photos = [vector(p) for p in e.instances]
    nearest = [max(cosine(a, b) for b in photos if b is not a) for a in photos]
    assert score.real == pytest.approx(statistics.fmean(nearest), abs=1e-5)


def test_a_mask_cuts_the_photograph_to_the_subject():
    mask = Image.new("L", (100, 60), 0)
    mask.paste(255, (40, 20, 60, 50))
    assert measures.cut(Image.new("RGB", (100, 60)), mask).size == (36, 36)
    assert measures.cut(Image.new("RGB", (100, 60)), Image.new("L", (100, 60))).size == (100, 60)


def test_one_photograph_and_one_picture_have_no_real_row_and_no_error(encoder):
    e = evidence(untrained=False, photos=1)
    [score] = measures.subject_similarity(Evidence(e.drawings[:1], e.instances, SUBJECT), encoder)
    assert (score.real, score.stderr, score.baseline, score.n) == (None, None, None, 1)


def test_a_run_logs_them_under_the_encoders_name_from_step_zero(small_job):
    import json

    from dreambooth.engine.loop import run

    job = small_job(
        samples={"every": 4, "per_prompt": 2},
        metrics=[{"kind": "subject_similarity", "encoder": "emoji-64-clip"}, "diversity"],
    )
    result = run(job)
    rows = [json.loads(x) for x in (result.folder / "metrics.jsonl").read_text().splitlines()]
    name = "metric/subject_similarity/emoji-64-clip"
    assert [row["step"] for row in rows if name in row] == [0, 4]
    assert all(-1 <= row[name] <= 1 for row in rows if name in row)


def test_what_cannot_be_measured_is_told_before_work(small_job):
    from dreambooth.jobs.checks import preflight

    job = small_job(
        metrics=[
            {"kind": "prompt_alignment", "encoder": "enet-i"},
            {"kind": "drift", "encoder": "/away"},
        ]
    )
    said = [p.message for p in preflight(job)]
    assert any("compares pictures with words" in s for s in said)
    assert any('no encoder "/away"' in s for s in said)
