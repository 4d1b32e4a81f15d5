"""A step shared over processes: sums, parameters left out, stages; here with a world of one."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dreambooth.engine.devices import parallel
from dreambooth.engine.devices.parallel import Overlapped, Parallel, parallel_for


@pytest.fixture
def group():
    """Be a run of one process that speaks as several do."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def model():
    """Two parts; the encoder's second layer is in no loss."""
    torch.manual_seed(0)
    encoder = nn.ModuleDict({"used": nn.Linear(3, 4), "left_out": nn.Linear(3, 4)})
    parts = {"unet": nn.Linear(4, 2), "text_encoder": encoder}
    parameters = {
        f"{part}.{name}": p
        for part, module in parts.items()
        for name, p in module.named_parameters()
    }
    return SimpleNamespace(parts=parts, parameters=parameters)


def forward(model):
    """Return a forward over both parts, as the engine's: through the model, not through DDP."""

    def rows(batch):
        return model.parts["unet"](model.parts["text_encoder"]["used"](batch)).square().sum(1)

    return rows


def gradients(model, way, batches):
    """Return what a step of several forwards leaves in each parameter."""
    for number, batch in enumerate(batches):
        rows = way.rows(forward(model), batch, last=number == len(batches) - 1)
        rows.sum().backward()
    found = {n: None if p.grad is None else p.grad.clone() for n, p in model.parameters.items()}
    for p in model.parameters.values():
        p.grad = None
    return found


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        assert (gradient is None) == (other[name] is None), name
        assert gradient is None or torch.equal(gradient, other[name]), name


def test_gradients_are_those_of_the_plain_backward_pass(group, model):
    way = Overlapped(model, model.parameters)
    for count in (1, 3, 1):  # forwards of a step
        batches = [torch.randn(2, 3) for _ in range(count)]
        plain = gradients(model, Parallel(), batches)
        assert_same(gradients(model, way, batches), plain)
        assert plain["text_encoder.left_out.weight"] is None
        assert plain["unet.weight"] is not None


def test_a_step_sums_once_however_many_forwards_it_has(group, model, monkeypatch):
    summed = []
    plain = parallel._summed
    monkeypatch.setattr(parallel, "_summed", lambda b: summed.append(b.index()) or plain(b))
    way = Overlapped(model, model.parameters)
    batches = [torch.randn(2, 3) for _ in range(4)]
    gradients(model, way, batches)
    assert summed == [0]  # one bucket


def test_a_stage_sums_what_trains_in_it(group, model):
    way = Overlapped(model, model.parameters)
    batch = torch.randn(2, 3)
    first = gradients(model, way, [batch])
    for name, p in model.parameters.items():
        p.requires_grad_(name.startswith("unet"))
    second = gradients(model, way, [batch])
    assert second["text_encoder.used.weight"] is None
    assert torch.equal(second["unet.weight"], first["unet.weight"])
    for p in model.parameters.values():
        p.requires_grad_(True)
    assert_same(gradients(model, way, [batch]), first)


def test_nothing_is_said_about_parameters_that_were_looked_for(group, model, capfd):
    del model.parts["text_encoder"]["left_out"]
    model.parameters = {n: p for n, p in model.parameters.items() if "left_out" not in n}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradients(model, Overlapped(model, model.parameters), [torch.randn(2, 3)])
    assert capfd.readouterr() == ("", "")


def test_one_process_shares_nothing(model):
    for devices in (None, SimpleNamespace(world_size=1)):
        assert type(parallel_for(devices, model, model.parameters)) is Parallel
    several = parallel_for(SimpleNamespace(world_size=2), model, model.parameters)
    assert type(several) is Overlapped
