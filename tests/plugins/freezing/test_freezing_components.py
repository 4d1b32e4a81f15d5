from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from pydantic import ValidationError
from torch import nn

from dreambooth.errors import JobError
from dreambooth.interfaces import LatentSpec, LoadedModel, ModelInfo, ParameterGroup
from dreambooth.plugins import registry
from dreambooth_plugins.freezing.components import Components

INFO = ModelInfo(
    family="test",
    prediction="epsilon",
    schedule={},
    parts=("unet", "text_encoder", "text_encoder_2", "vae", "tokenizer"),
    roles={
        "denoiser": ("unet",),
        "text_encoders": ("text_encoder", "text_encoder_2"),
        "vae": ("vae",),
    },
    latent=LatentSpec(4, 8, 8),
    resolution=64,
)
NO_TEXT = ModelInfo(
    "test", "epsilon", {}, ("unet",), {"denoiser": ("unet",), "text_encoders": ()},
    LatentSpec(4, 8, 8), 64,
)  # fmt: skip


def fake_model():
    """Return a LoadedModel that has parts and names, and nothing else."""
    names = dict.fromkeys(LoadedModel.__abstractmethods__, lambda self, *a: None)
    model = type("FakeModel", (LoadedModel,), names)()
    model.info = INFO
    model.parts = {
        "unet": nn.Sequential(nn.Conv2d(4, 8, 3), nn.GroupNorm(2, 8)),
        "text_encoder": nn.ModuleDict({"embeddings": nn.Embedding(5, 3), "out": nn.Linear(3, 3)}),
        "text_encoder_2": nn.Linear(2, 2, bias=False),
        "vae": nn.Linear(2, 2),
    }
    return model


def job(*needs):
    return SimpleNamespace(loss=SimpleNamespace(kind="mse", required=lambda: frozenset(needs)))


def problems(policy, *needs, info=INFO):
    return list(policy.check(job(*needs), info))


UNET = {"unet.0.weight", "unet.0.bias", "unet.1.weight", "unet.1.bias"}
TEXT = {"text_encoder.embeddings.weight", "text_encoder.out.weight", "text_encoder.out.bias"}


@pytest.mark.parametrize(
    ("train", "names"),
    [
        (["unet"], UNET),
        (["denoiser"], UNET),
        (["unet", "text_encoder"], UNET | TEXT),
        (["text_encoders"], TEXT | {"text_encoder_2.weight"}),
        (["denoiser", "unet"], UNET),
    ],
)
def test_all_parameters_of_the_named_parts_train(train, names):
    model = fake_model()
    trainable = Components(train=train).trainable(model)
    assert set(trainable) == names
    for name, parameter in trainable.items():
        part, inside = name.split(".", 1)
        assert parameter is dict(model.parts[part].named_parameters())[inside]


def test_trained_parts_resolve_roles_in_the_order_given():
    assert Components(train=["text_encoders", "denoiser"]).trained_parts(INFO) == (
        "text_encoder",
        "text_encoder_2",
        "unet",
    )


def test_default_trains_denoiser_and_text_encoder():
    usual = replace(INFO, trains=("unet", "text_encoder"))
    assert Components().trained_parts(usual) == ("unet", "text_encoder")
    assert Components().settled(lambda: usual).train == ["unet", "text_encoder"]
    assert Components().trained_parts(INFO) == ("unet",), "the denoiser of other families"
    assert problems(Components()) == []


def test_without_rates_there_is_one_group():
    names = ["unet.a", "text_encoder.b", "unet.c"]
    assert Components().groups(names) == [ParameterGroup(tuple(names))]


def test_parts_with_rates_of_their_own_get_a_group():
    policy = Components(
        train=["unet", "text_encoders"],
        lr={"text_encoder": 1e-6, "text_encoder_2": 1e-6},
        weight_decay={"unet": 0.0},
    )
    names = ["unet.a", "text_encoder.b", "unet.c", "text_encoder_2.d"]
    assert policy.groups(names) == [
        ParameterGroup(("unet.a", "unet.c"), None, 0.0),
        ParameterGroup(("text_encoder.b", "text_encoder_2.d"), 1e-6, None),
    ]
    assert problems(policy) == []


def test_an_unknown_part_is_a_problem_with_a_suggestion():
    (problem,) = problems(Components(train=["unet", "text_encodr"]))
    assert problem.at == ("freezing", "train", 1)
    assert '"text_encodr"' in problem.message
    assert 'did you mean "text_encoder"?' in problem.hint
    assert "unet, text_encoder, text_encoder_2" in problem.hint
    with pytest.raises(JobError, match="text_encodr"):
        Components(train=["text_encodr"]).trained_parts(INFO)


def test_the_vae_trains_only_with_a_loss_for_it():
    policy = Components(train=["unet", "vae"])
    (problem,) = problems(policy)
    assert problem.at == ("freezing", "train", 1)
    assert 'gives "vae" no gradient' in problem.message
    assert problems(policy, "trains_vae") == []


def test_a_part_outside_the_loss_is_a_problem():
    (problem,) = problems(Components(train=["tokenizer"]))
    assert "takes no part in the training loss" in problem.message


def test_an_empty_role_is_a_problem():
    (problem,) = problems(Components(train=["denoiser", "text_encoders"]), info=NO_TEXT)
    assert problem.at == ("freezing", "train", 1)
    assert "no part in the role" in problem.message


@pytest.mark.parametrize("option", ["lr", "weight_decay"])
def test_a_rate_of_a_part_that_does_not_train_is_a_problem(option):
    (problem,) = problems(Components(train=["denoiser"], **{option: {"text_encoder": 0.1}}))
    assert problem.at == ("freezing", option, "text_encoder")
    assert "parts that train: unet" in problem.hint
    assert problems(Components(train=["denoiser"], **{option: {"unet": 0.1}})) == []


def test_without_a_readable_model_nothing_is_claimed():
    assert problems(Components(train=["anything"]), info=None) == []


@pytest.mark.parametrize(
    "options",
    [{"train": []}, {"train": ["unet", "unet"]}, {"lr": {"unet": 0.0}}, {"parts": ["unet"]}],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValidationError):
        Components(**options)


def test_components_is_registered():
    assert registry().kinds("freezing")["components"] is Components
