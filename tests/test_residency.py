"""Which part is in memory when: the session does what the table says, the plan counts the same."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dreambooth.engine.cost import activations
from dreambooth.engine.cost.plan import make_plan
from dreambooth.engine.cost.residency import Residency, residency_of
from dreambooth.engine.devices.precision import has_bf16_units
from dreambooth.engine.loop import run
from dreambooth.engine.reporting import Quiet
from dreambooth.helpers.pictures import encode

SLACK, SHARE = 128 * 2**20, 0.15
"""A planned peak may be off by the larger of the two."""
bf16 = pytest.param(
    "bf16",
    marks=pytest.mark.skipif(
        not has_bf16_units(torch.device("cpu")), reason="this CPU has no bfloat16 units"
    ),
)


def table(job):
    class Item:
        id = "a"

    return residency_of(job, job.model.describe(), [Item])


def test_the_table(small_job):
    unet = {"kind": "components", "train": ["unet"]}
    texts, vae, base, cached = {"text_encoder"}, {"vae"}, {"unet"}, {"cache": False}
    plain = table(small_job(freezing=unet)).parts
    assert plain["texts"] == texts
    assert plain["encoding"] == plain["class pictures"] == vae
    assert plain["class images"] == plain["training"] == base
    assert plain["export"] == base | texts
    assert not {"drawing", "validation"} & plain.keys()
    drawn = table(small_job(freezing=unet, samples={"every": 2})).parts
    assert drawn["training"] == base
    assert drawn["drawing"] == base | vae
    fresh = table(small_job(freezing=unet, train=cached, prior="none")).parts
    assert fresh["training"] == base | texts | vae
    assert not {"texts", "encoding", "class images", "class pictures"} & fresh.keys()
    copied = table(small_job(freezing=unet, prior={"when": "alongside"}))
    assert copied.copies["training"] == base
    assert not copied.copies.get("export")
    both = table(small_job(freezing={"kind": "components", "train": ["unet", "text_encoder"]}))
    assert both.parts["texts"] == texts  # for the class images
    assert both.parts["training"] == base | texts
    # What trains is known when the weights are: the encoder is met again beside the denoiser.
    later = small_job(freezing={"kind": "patterns", "train": ["*attn2*"]})
    found = residency_of(later, later.model.describe(), [], ["unet"])
    assert found.keeps_texts
    assert not found.texts_first
    assert found.parts["texts"] == base | texts


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"samples": {"every": 2, "per_prompt": 1}, "validation": {"every": 2}},
        {"data": {"crop": "random"}},
        {"prior": {"when": "alongside", "count": 4, "batch_size": 4}},
        {"freezing": {"kind": "components", "train": ["unet", "text_encoder"]}},
    ],
    ids=["plain", "samples", "fresh", "alongside", "texts"],
)
def test_the_session_obeys_the_table(small_job, monkeypatch, sections):
    seen: list[tuple[str, set[str]]] = []
    enter = Residency.enter

    def watched(self, phase, model):
        if seen:  # what the phase that ends has loaded
            before = seen[-1][0]
            held = set(model.loaded())
            shown = self.parts.get("class pictures", ()) if before == "class images" else ()
            assert held <= {*self.parts.get(before, ()), *shown}, (before, held)
            trains = self.parts["training"]
            kinds = [held & {part} for part in ("unet", "text_encoder", "vae")]
            met = sum(map(bool, kinds))
            assert met < 2 or held <= trains or before in ("drawing", "export"), (before, held)
        enter(self, phase, model)
        assert set(model.loaded()) <= set(self.parts.get(phase, ())), phase
        if model.base is not None:
            assert set(model.base.loaded()) <= set(self.copies.get(phase, ())), phase
        seen.append((phase, set(model.loaded())))

    monkeypatch.setattr(Residency, "enter", watched)
    unet = {"freezing": {"kind": "components", "train": ["unet"]}}
    run(small_job(**{**unet, **sections}))
    assert {"training", "export"} <= {phase for phase, _ in seen}


def measured(values, tmp_path, **env):
    """Run a job in a process of its own and return planned and measured bytes by phase."""
    file = tmp_path / "job.json"
    file.write_text(json.dumps(values, default=str))
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "phases.py", file],
        env={**os.environ, "DREAMBOOTH_CACHE": str(tmp_path / "cache"), **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def off(found):
    """Return the phases whose plan is off by more than is allowed, with both figures in MiB."""
    wrong = {}
    for phase, peak in found["measured"].items():
        planned = found["planned"][phase]
        if phase == "class images":  # the session sees both as one
            planned = max(planned, found["planned"]["class pictures"])
        if abs(planned - peak) > max(SLACK, SHARE * peak):
            wrong[phase] = (planned >> 20, peak >> 20)
    return wrong


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("precision", ["fp32", bf16])
def test_the_plan_is_what_each_phase_takes_on_the_embedded_base(small_job, tmp_path, precision):
    job = small_job(
        model={"source": "builtin:emoji-64"},
        data={"resolution": 64},
        prior={"count": 10, "batch_size": 10},
        freezing={"kind": "components", "train": ["unet", "text_encoder"]},
        train={"steps": 2, "precision": precision, "batch_size": 2, "ema": {"decay": 0.9}},
        samples={"every": 2, "per_prompt": 3},
        validation={"every": 2},
    )
    found = measured(job.resolved(), tmp_path, OMP_NUM_THREADS="1")
    assert set(found["measured"]) | {"class pictures"} == set(found["planned"])
    assert not off(found), found


@pytest.fixture(scope="module")
def sd15(tmp_path_factory):
    """A folder of Stable Diffusion 1.5's sizes with random weights, 4.3 GB, for all tests."""
    sys.path.insert(0, str(Path(__file__).parent / "bench"))
    import models

    shared = os.environ.get("DREAMBOOTH_SD15")
    folder = Path(shared) if shared else tmp_path_factory.mktemp("sd15")
    written = models.sd15(folder)
    gc.collect()  # pipelines go in circles, and what runs are given should be free
    yield written
    if not shared:
        shutil.rmtree(folder)


# Part of the UNet: the whole of it, with AdamW in float32, would ask for 17 GiB; the backward pass
# still goes through all of it.
SD15 = {
    "weights": ({"kind": "patterns", "train": ["unet.down_blocks.*"]}, 12),
    "lora": ({"kind": "adapter", "train": ["unet"]}, 11),
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("precision", ["fp32", bf16])
@pytest.mark.parametrize("policy", sorted(SD15))
def test_the_plan_is_what_each_phase_takes_at_stable_diffusions_size(
    small_job, tmp_path, sd15, precision, policy, emit
):
    freezing, wanted = SD15[policy]
    [line] = (s for s in Path("/proc/meminfo").read_text().splitlines() if "MemAvailable" in s)
    if int(line.split()[1]) * 1024 < wanted * 2**30:
        pytest.skip(f"{wanted} GiB of memory have to be free")
    job = small_job(
        model={"source": str(sd15)},
        data={"resolution": 256},
        prior={"count": 2, "batch_size": 2},
        sampler={"kind": "cfg", "steps": 2},
        freezing=freezing,
        # Two steps: the first makes the optimizer's state, the second holds it from its begin.
        train={"steps": 2, "precision": precision},
        samples={"every": 2, "per_prompt": 1, "prompts": ["a photo of {identifier}"]},
        validation={"every": 2, "rows": 1},
    )
    found = measured(job.resolved(), tmp_path)
    shutil.rmtree(tmp_path)  # each leaves gigabytes
    mib = {
        name: (found["planned"][name] >> 20, peak >> 20) for name, peak in found["measured"].items()
    }
    emit(f"{policy}, {precision}: MiB planned and measured", mib)
    assert set(found["measured"]) | {"class pictures"} == set(found["planned"])
    assert not off(found), found


def test_weights_that_load_while_a_phase_is_counted_count_once(small_job, make_ctx):
    job = small_job()
    vae = (model := job.model.open(make_ctx(device="meta"))).parts["vae"]
    blocked = torch.backends.mkldnn.is_available()
    with torch.no_grad(), activations.AsComputed(torch.float32, blocked=blocked):
        pixels = torch.empty(3, 3, *job.data.size, device="meta")
        wanted = activations.peak(
            lambda: encode(model, pixels), [*vae.parameters(), *vae.buffers()]
        )
    phases = {phase.phase: phase for phase in make_plan(job, Quiet()).phases}
    assert phases["encoding"].working == wanted


def test_the_largest_phase_is_shown(small_job, dbt, tmp_path):
    job = small_job(samples={"every": 2}, validation={"every": 2})
    plan = make_plan(job, Quiet())
    assert [p.phase for p in plan.phases] == [
        "texts", "encoding", "class images", "class pictures",
        "training", "validation", "drawing", "export",
    ]  # fmt: skip
    assert plan.largest.total == max(p.total for p in plan.phases)
    assert {p.phase: p.total for p in plan.phases}["training"] == plan.memory.total
    (tmp_path / "job.yaml").write_text(json.dumps(job.resolved(), default=str))
    said = dbt("run", "job.yaml", "--dry-run", cwd=tmp_path).stdout
    assert "at most" in said
    assert "drawing samples" in said


def test_a_vae_is_counted_in_float32_whatever_the_run_computes_in(small_job):
    """It runs in it: latents are kept, and half precision overflows there."""
    phases = {
        precision: {p.phase: p.working for p in make_plan(job, Quiet()).phases}
        for precision in ("fp32", "bf16")
        for job in [small_job(train={"precision": precision})]
    }
    for phase in ("encoding", "class pictures"):
        assert phases["bf16"][phase] == phases["fp32"][phase] > 0
    assert phases["bf16"]["class images"] < phases["fp32"]["class images"]
