"""The plugin author's guide: complete, and its code works."""

from __future__ import annotations

import inspect
import json
import math
import re
import sys
import tomllib
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import pytest
import torch
from ruamel.yaml import YAML

from dreambooth import Job, JobError, hookimpl, hookspecs, interfaces
from dreambooth.interfaces import Conditioning, LatentSpec, LoadedModel, RunView, Stop
from dreambooth.plugins import registry_with
from dreambooth.plugins.classes import required_methods
from dreambooth.plugins.found import COMMANDS
from dreambooth.plugins.slots import SLOTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dreambooth.component import Component
    from dreambooth.plugins.slots import SlotInfo

PLUGINS = Path(__file__).parents[3] / "plugins" / "dreambooth_plugins"
GUIDE = (Path(__file__).parents[3] / "plugins" / "README.md").read_text(encoding="utf-8")
HOOKS = [name for name, value in vars(hookspecs).items() if hasattr(value, "dreambooth_spec")]
OPENED = [
    getattr(interfaces, name)
    for name in interfaces.__all__
    if getattr(getattr(interfaces, name), "__abstractmethods__", None)
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)


def written(function: Any) -> str:
    """Return `name(a, b, *, c)` as the guide writes it, without self."""
    parts: list[str] = []
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in parts:
            parts.append("*")
        parts.append(parameter.name)
    return f"{function.__name__}({', '.join(parts)})"


def module(index: int) -> ModuleType:
    made = ModuleType(f"guide_{index}")
    sys.modules[made.__name__] = made  # pydantic looks there for the names in annotations
    code = compile(blocks("python")[index], f"README.md#{index}", "exec", dont_inherit=True)
    exec(code, vars(made))
    return made


@pytest.fixture(scope="module")
def modules() -> Iterator[list[ModuleType]]:
    """Return the guide's Python blocks as modules."""
    made = [module(i) for i in range(len(blocks("python")))]
    yield made
    for one in made:
        del sys.modules[one.__name__]


@pytest.fixture(scope="module")
def guide(modules: list[ModuleType]) -> dict[str, ModuleType]:
    """Return those that are plugins, by the hook each one implements."""
    return {hook: m for m in modules for hook in HOOKS if hasattr(m, hook)}


def test_every_hook_fills_a_slot_or_brings_commands() -> None:
    others = ["register_commands", "register_files"]
    assert sorted(HOOKS) == sorted([*(s.hook for s in SLOTS.values()), *others])


@pytest.mark.parametrize("slot", SLOTS.values(), ids=lambda s: s.name)
def test_every_hook_and_required_method_is_in_the_guide(slot: SlotInfo) -> None:
    (row,) = [line for line in GUIDE.splitlines() if f"| `{slot.hook}` |" in line]
    assert f"`{slot.named_in}`" in row
    assert f"`{slot.base.__name__}`" in row
    assert required_methods(slot.base)
    for name in required_methods(slot.base):
        assert written(getattr(slot.base, name)) in row
    assert inspect.getdoc(getattr(hookspecs, slot.hook))


@pytest.mark.parametrize("base", OPENED, ids=lambda c: c.__name__)
def test_every_abstract_method_of_what_open_returns_is_in_the_guide(base: type) -> None:
    (row,) = [line for line in GUIDE.splitlines() if line.startswith(f"| `{base.__name__}` |")]
    for name in base.__abstractmethods__:  # type: ignore[attr-defined]
        assert f"`{written(getattr(base, name))}`" in row


@pytest.mark.parametrize("slot", SLOTS.values(), ids=lambda s: s.name)
def test_every_hook_registers_a_class(slot: SlotInfo) -> None:
    def stub(*args: Any, **kwargs: Any) -> None:
        return None

    body = {name: stub for name in required_methods(slot.base)}
    kind = f"test_{slot.name}"
    annotations = {"kind": Literal[kind]}  # type: ignore[valid-type]
    cls: type[Component] = type(
        "Mine", (slot.base,), {**body, "kind": kind, "__annotations__": annotations}
    )
    plugin = SimpleNamespace(**{slot.hook: hookimpl(lambda: [cls])})
    with registry_with(plugin) as registry:
        assert registry.kinds(slot.name)[kind] is cls
        assert registry.provider(slot.name, kind).slots == (slot.name,)
        if slot.fields:
            assert f'"const": "{kind}"' in json.dumps(Job.model_json_schema())


def test_every_python_block_registers_or_is_a_test(
    guide: dict[str, ModuleType], modules: list[ModuleType]
) -> None:
    tests = [f for m in modules for n, f in vars(m).items() if n.startswith("test_")]
    assert len(guide) + len(tests) == len(modules) - 1 == 7
    for test in tests:
        test()
    classes = [m for hook, m in guide.items() if hook != "register_commands"]
    with registry_with(*classes) as registry:
        assert {"cross_attention_only"} <= set(registry.kinds("freezing"))
        assert {"log_cosh"} <= set(registry.kinds("loss"))
        assert {"unguided"} <= set(registry.kinds("sampler"))
        assert {"turning"} <= set(registry.kinds("prior"))
        assert {"stop_above"} <= set(registry.kinds("callback"))


def test_the_guides_suite_has_something_to_test(modules: list[ModuleType]) -> None:
    (suite,) = [m.TestHalving for m in modules if hasattr(m, "TestHalving")]
    assert suite.__test__
    suite().test_it_is_a_function_of_the_step(suite.component, None)
    suite().test_it_says_whether_it_depends_on_the_end(suite.component)
    suite().test_people_can_read_what_it_and_its_options_are(suite.component)


def test_the_first_plugin_is_short_and_its_entry_point_names_it() -> None:
    code = [line for line in blocks("python")[0].splitlines() if line.strip()]
    assert len(code) <= 20
    toml = blocks("toml")[0]
    (target,) = tomllib.loads(toml)["project"]["entry-points"]["dreambooth"].values()
    assert f"`{target.replace('.', '/')}.py`" in GUIDE


def test_the_guides_job_is_valid_and_chooses_the_parameters_it_says(
    guide: dict[str, ModuleType],
) -> None:
    (text,) = blocks("yaml")
    with registry_with(guide["register_freezing_policies"]):
        job = Job.model_validate(YAML(typ="safe").load(text))
    names = ["unet.a.attn1.to_k.weight", "unet.a.attn2.to_k.weight", "unet.a.attn2.to_q.weight"]
    model = SimpleNamespace(named_parameters=lambda part: [(n, n) for n in names])
    assert list(job.freezing.trainable(model)) == ["unet.a.attn2.to_k.weight"]  # type: ignore[arg-type]


def test_the_guides_loss_is_log_cosh(guide: dict[str, ModuleType]) -> None:
    loss = guide["register_losses"].LogCosh(prior_weight=0.5)
    pred, target = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    step = SimpleNamespace(
        pred=pred,
        target=target,
        weight=torch.tensor([1.0, 2.0, 1.0]),
        is_prior=torch.tensor([False, False, True]),
    )
    error = (pred - target).double().numpy().reshape(3, -1)
    for row, factor, value in zip(error, (1.0, 2.0, 0.5), loss.rows(step), strict=True):
        expected = factor * sum(math.log(math.cosh(e)) for e in row) / len(row)
        assert value.item() == pytest.approx(expected, rel=1e-5)


class FlatModel:
    """Predicts a tenth of its input."""

    info = SimpleNamespace(latent=LatentSpec(channels=4, factor=8, multiple=8))

    def conditionings(self, prompts: list[str]) -> list[Conditioning]:
        return [Conditioning({}) for _ in prompts]

    def collate(self, conditionings: list[Conditioning]) -> Conditioning:
        return conditionings[0]

    condition = LoadedModel.condition

    def denoise(self, z: torch.Tensor, t: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        assert t.shape == (len(z),)
        return z * 0.1


def test_a_picture_of_the_guides_sampler_does_not_depend_on_its_batch(
    guide: dict[str, ModuleType],
) -> None:
    sampler = guide["register_samplers"].Unguided(steps=4)
    config = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "clip_sample": False}
    ctx = SimpleNamespace(device=torch.device("cpu"), autocast=nullcontext)

    def draw(seeds: list[int]) -> torch.Tensor:
        return sampler.sample(  # type: ignore[no-any-return]
            FlatModel(),
            ["x"] * len(seeds),
            seeds=seeds,
            size=(64, 32),
            solver_config=config,
            ctx=ctx,
        )

    both = draw([1, 2])
    assert both.shape == (2, 4, 8, 4)
    assert torch.equal(both[1:], draw([2]))
    assert not torch.equal(both[0], both[1])


def test_the_guides_prior_mirrors_rows_under_its_prompts(guide: dict[str, ModuleType]) -> None:
    prior = guide["register_priors"].Turning()
    subject = interfaces.Subject(identifier="ohwx", class_noun="dog")
    ctx = SimpleNamespace(job=SimpleNamespace(subject=subject))
    rows = prior.open(ctx, None, None, None).rows([4, 5], 0)
    assert [(r.prompt, r.latents, r.target) for r in rows] == [
        ("a photo of a dog", None, "reference"),
        ("a drawing of a dog", None, "reference"),
    ]
    assert prior.prompts(subject) == ["a photo of a dog", "a drawing of a dog"]
    assert prior.needs_base()


def test_the_guides_callback_stops_after_three_and_keeps_count_over_a_resume(
    guide: dict[str, ModuleType],
) -> None:
    callback = guide["register_callbacks"].StopAbove(limit=1.0)

    def view(loss: float) -> RunView:
        job: Any = None
        return RunView(job, 1, 9, {"train/loss": loss}, Path())

    first = callback.open(None)
    assert [first.on("log", view(x)) for x in (2.0, 0.5, 2.0, 2.0)] == [None] * 4
    assert first.on("step", view(2.0)) is None
    resumed = callback.open(None)
    resumed.load_state(first.state())
    assert resumed.on("log", view(2.0)) == Stop("train/loss stayed above 1")


def test_the_guides_command_joins_and_counts(
    guide: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dreambooth.plugins.commands import join
    from dreambooth.plugins.found import Source

    (target,) = tomllib.loads(blocks("toml")[1])["project"]["entry-points"][COMMANDS].values()
    assert target == "my_policies.commands"
    joined = join((), [Source("mine", "mine", "1", lambda: guide["register_commands"])])
    assert joined.problems() == []
    (tmp_path / "metrics.jsonl").write_text("{}\n{}\n")
    command = joined.commands["count-steps"]
    command.main([str(tmp_path)], standalone_mode=False)
    assert capsys.readouterr().out == "2\n"
    with pytest.raises(JobError, match=r"has no metrics\.jsonl"):
        command.main([str(tmp_path / "nowhere")], standalone_mode=False)


def test_the_package_lists_what_is_public() -> None:
    import dreambooth

    assert dir(dreambooth) == sorted(dreambooth.__all__)
    assert all(hasattr(dreambooth, name) for name in dreambooth.__all__)
