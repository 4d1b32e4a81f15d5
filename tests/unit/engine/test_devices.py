"""Which device a run takes, and what it leaves of the process's state. No card is needed."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch

from dreambooth.engine.cost import plan
from dreambooth.engine.devices import processes as devices
from dreambooth.engine.devices.machine import (
    WORKSPACE,
    current,
    default_device,
    describe_machine,
    deterministic,
)
from dreambooth.engine.devices.processes import open_devices
from dreambooth.errors import JobError
from dreambooth.helpers.random import kept_generators
from dreambooth.job import Train


def pretend(monkeypatch, processes, device):
    """Let accelerate say that so many processes share the run, this one on `device`."""
    fake = SimpleNamespace(num_processes=processes, process_index=0, device=torch.device(device))
    monkeypatch.setattr(devices, "Accelerator", lambda **_: fake)
    monkeypatch.setattr(devices, "pick_device", lambda name: torch.device(name))


@pytest.mark.parametrize(
    ("wanted", "has", "hint"),
    [("cuda:1", "cuda:0", "CUDA_VISIBLE_DEVICES"), ("mps", "cuda:0", 'write "cuda"')],
)
def test_a_device_that_several_processes_cannot_share_is_refused(monkeypatch, wanted, has, hint):
    pretend(monkeypatch, 2, has)
    with pytest.raises(JobError, match=f"train.device {wanted}") as refused:
        devices._open(torch.device(wanted))
    assert hint in refused.value.hint


def test_several_processes_take_the_cards_of_a_kind(monkeypatch):
    pretend(monkeypatch, 2, "cuda:1")
    monkeypatch.setattr(devices, "host_group", lambda: None)
    assert devices._open(torch.device("cuda")).device == torch.device("cuda:1")


def test_a_numbered_card_is_the_current_one_for_the_run(monkeypatch):
    calls = []
    card = SimpleNamespace(current_device=lambda: 0, set_device=lambda d: calls.append(str(d)))
    monkeypatch.setattr(torch, "get_device_module", lambda device: card)
    with current(torch.device("cuda:1")):
        assert calls == ["cuda:1"]
    assert calls == ["cuda:1", "0"]
    with current(torch.device("cuda")), current(torch.device("cpu:0")):
        assert len(calls) == 2


def test_the_run_makes_its_card_current(monkeypatch):
    entered = []
    pretend(monkeypatch, 1, "cpu")
    monkeypatch.setattr(devices, "current", lambda d: entered.append(d) or deterministic(False))
    with open_devices(Train(device="cuda:1")) as opened:
        assert opened.device == entered[0] == torch.device("cuda:1")


def test_plan_and_run_agree_on_the_default_device(monkeypatch):
    assert plan.default_device is devices.default_device
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("xpu"))
    assert default_device() == torch.device("xpu")
    pretend(monkeypatch, 1, "cpu")
    assert devices._open(None).device == torch.device("xpu")


@pytest.mark.parametrize("kind", ["xpu", "mps"])
def test_global_generators_of_every_kind_of_device_are_given_back(monkeypatch, kind):
    states = {"now": b"before"}
    module = getattr(torch, kind)
    monkeypatch.setattr(module, "get_rng_state", lambda *_: states["now"])
    monkeypatch.setattr(module, "set_rng_state", lambda state, *_: states.update(now=state))
    cpu = torch.get_rng_state()
    with kept_generators(torch.device(kind)):
        states["now"] = b"moved"
        torch.default_generator.manual_seed(5)
    assert states["now"] == b"before"
    assert torch.equal(torch.get_rng_state(), cpu)


def test_determinism_is_set_for_the_run_and_given_back(monkeypatch):
    monkeypatch.delenv(WORKSPACE, raising=False)
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    with open_devices(Train(device="cpu", deterministic=True)) as opened:
        assert torch.are_deterministic_algorithms_enabled()
        assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == (True, False)
        assert os.environ[WORKSPACE] == ":4096:8"
        assert describe_machine(opened.device)["deterministic"] is True
    assert not torch.are_deterministic_algorithms_enabled()
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == before


def test_what_has_no_deterministic_form_is_refused():
    with deterministic(True):
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    with deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled()


def test_float32_is_whole_unless_a_job_asks_for_tf32():
    cudnn, cublas = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, cublas.allow_tf32
    for wanted in (False, True):
        with open_devices(Train(device="cpu", tf32=wanted)):
            assert (cudnn.allow_tf32, cublas.allow_tf32) == (wanted, wanted)
            with devices.float32_products(tf32=False):  # as where an export is compared
                assert (cudnn.allow_tf32, cublas.allow_tf32) == (False, False)
            assert (cudnn.allow_tf32, cublas.allow_tf32) == (wanted, wanted)
    assert (cudnn.allow_tf32, cublas.allow_tf32) == before


def test_an_export_is_compared_in_whole_float32(small_job, monkeypatch):
    from dreambooth.engine.loop import run
    from dreambooth_plugins.exporter.diffusers_folder import Diffusers

    seen, verify = [], Diffusers.verify

    def watched(self, *args):
        seen.append(torch.backends.cudnn.allow_tf32)
        return verify(self, *args)

    monkeypatch.setattr(Diffusers, "verify", watched)
    run(small_job(train={"steps": 1, "tf32": True}))
    assert seen == [False]
