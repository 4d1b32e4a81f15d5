"""The loader, on fake dist-infos in a temporary folder: nothing is installed."""

from __future__ import annotations

import importlib
import sys
import textwrap
from types import SimpleNamespace
from typing import TYPE_CHECKING, Literal

import pytest

from dreambooth import FreezingPolicy, Job, hookimpl
from dreambooth.errors import PluginError
from dreambooth.interfaces import Loss
from dreambooth.plugins import Registry, register, registry, registry_with

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from torch import Tensor
    from torch.nn import Parameter

    from dreambooth.interfaces import LoadedModel, StepTensors
    from dreambooth.plugins import PluginInfo

    Install = Callable[..., None]

LOSS = """
    from __future__ import annotations
    from typing import Literal
    from dreambooth import Loss, hookimpl

    class {name}(Loss):
        "A loss."
        kind: Literal["{kind}"] = "{kind}"

        def rows(self, s):
            return s.weight

    @hookimpl
    def register_losses():
        return [{name}]
"""


def loss(kind: str, name: str = "MyLoss") -> str:
    return LOSS.format(kind=kind, name=name)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Return `install(distribution, {entry point: module source}, version)`."""
    registry()  # made before anything fake can be found
    count = 0

    def write(
        distribution: str, plugins: Mapping[str, str], version: str = "1.2", where: str = "site"
    ) -> None:
        nonlocal count
        site = tmp_path / where
        if str(site) not in sys.path:
            site.mkdir()
            monkeypatch.syspath_prepend(site)
        info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: {distribution}\nVersion: {version}\n")
        lines = ["[dreambooth]"]
        for name, source in plugins.items():
            count += 1
            (site / f"fake_plugin_{count}.py").write_text(textwrap.dedent(source))
            lines.append(f"{name} = fake_plugin_{count}")
        (info / "entry_points.txt").write_text("\n".join(lines))
        importlib.invalidate_caches()

    yield write
    for name in [n for n in sys.modules if n.startswith("fake_plugin_")]:
        del sys.modules[name]


def info(reg: Registry, name: str) -> PluginInfo:
    (found,) = [i for i in reg.infos if i.name == name]
    return found


def test_an_installed_plugin_brings_its_kind(install: Install) -> None:
    install("nice-losses", {"nice": loss("nice")})
    reg = Registry()
    found = info(reg, "nice")
    assert (found.distribution, found.version, found.status) == ("nice-losses", "1.2", "ok")
    assert (found.slots, found.kinds, found.error) == (("loss",), {"loss": ("nice",)}, "")
    assert issubclass(reg.kinds("loss")["nice"], Loss)
    assert reg.provider("loss", "nice") == found
    assert "prior_preservation" in reg.kinds("loss")


BROKEN = {
    "import error": ("import no_such_module_here", "ModuleNotFoundError"),
    "syntax error": ("def f(:\n    pass", "SyntaxError: invalid syntax"),
    "exit at import": ("raise SystemExit(3)", "SystemExit: 3"),
    "base exception": ("class Odd(BaseException): pass\nraise Odd('odd')", "Odd: odd"),
    "no hooks": ("x = 1", "has no hooks"),
    "no marker": ("def register_losses():\n    return []", "put @hookimpl above it"),
    "hook with an argument": (
        "from dreambooth import hookimpl\n@hookimpl\ndef register_losses(job):\n    return []",
        "wrong hook signature",
    ),
    "unknown hook": (
        "from dreambooth import hookimpl\n@hookimpl\ndef register_loss():\n    return []",
        'unknown hook "register_loss"; did you mean "register_losses"?',
    ),
    "raising hook": (
        "from dreambooth import hookimpl\n@hookimpl\ndef register_losses():\n    1 / 0",
        "ZeroDivisionError: division by zero (",
    ),
    "no list": (
        "from dreambooth import hookimpl\n@hookimpl\ndef register_losses():\n    return None",
        "must return a list of classes, not None",
    ),
    "an instance": (loss("i").replace("[MyLoss]", "[MyLoss()]"), "must return classes"),
    "a class of another slot": (
        loss("i").replace("register_losses", "register_samplers"),
        "MyLoss is not a subclass of Sampler",
    ),
    "the base itself": (loss("i").replace("[MyLoss]", "[Loss]"), "not a subclass of Loss"),
    "no kind": (loss("i").replace('kind: Literal["i"] = "i"', "pass"), "MyLoss needs a kind"),
    "kind is no Literal": (loss("i").replace('Literal["i"]', "str"), "MyLoss needs a kind"),
    "kind without default": (loss("i").replace(' = "i"', ""), "MyLoss needs a kind"),
    "kind with a space": (loss("my loss"), '"my loss" is no kind'),
    "one kind twice": (loss("i").replace("[MyLoss]", "[MyLoss, MyLoss]"), '"i" twice'),
    "no method": (loss("i").replace("def rows", "def row"), "must implement Loss.rows()"),
    "method without its argument": (
        loss("i").replace("rows(self, s)", "rows(self)"),
        "must allow rows(self, s)",
    ),
    "unknown name in an option": (
        loss("i").replace('"A loss."', "scale: Decimal = 1"),
        "MyLoss has an option that cannot be read",
    ),
    "an option no schema can hold": (
        loss("i").replace('"A loss."', "call: object | type(print) = None"),
        "MyLoss has an option that cannot be read",
    ),
    "wrapper": (
        "from dreambooth import hookimpl\n@hookimpl(wrapper=True)\n"
        "def register_losses():\n    return (yield)",
        "wrappers are not supported",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_is_reported_and_breaks_nothing_else(case: str, install: Install) -> None:
    source, error = BROKEN[case]
    install("bad", {"bad": source})
    install("good", {"good": loss("fine")})
    before = {slot: set(kinds) for slot, kinds in registry()._kinds.items()}
    reg = Registry()
    assert info(reg, "bad").status == "broken"
    assert error in info(reg, "bad").error
    assert "\n" not in info(reg, "bad").error
    assert info(reg, "good").status == "ok"
    before["loss"] |= {"fine"}
    assert {slot: set(kinds) for slot, kinds in reg._kinds.items()} == before
    assert any('"bad" (bad 1.2) is broken' in line for line in reg.problems())


def test_a_plugin_that_breaks_late_is_rolled_back_whole(install: Install) -> None:
    more = "\n    @hookimpl\n    def register_samplers():\n        raise RuntimeError('late')\n"
    install("half", {"half": loss("half") + more})
    reg = Registry()
    assert "half" not in reg.kinds("loss")
    assert reg.why_missing("loss", "half").startswith('plugin "half" (half 1.2) could not be')
    assert "RuntimeError: late" in reg.why_missing("loss", "half")


def test_the_place_of_the_fault_is_named(install: Install) -> None:
    install("bad", {"bad": "x = 1\nimport no_such_module_here\n"})
    assert "fake_plugin_1.py:2)" in info(Registry(), "bad").error


def test_a_naming_error_mentions_a_broken_plugin_that_may_bring_the_kind(install: Install) -> None:
    install("bad", {"bad": "raise OSError('no licence')"})
    why = Registry().why_missing("loss", "mystery")
    assert 'plugin "bad" (bad 1.2), which may bring it, could not be loaded' in why
    assert "no licence" in why


def test_ctrl_c_while_loading_is_passed_on(install: Install) -> None:
    install("slow", {"slow": "raise KeyboardInterrupt"})
    with pytest.raises(KeyboardInterrupt):
        Registry()


def test_what_a_plugin_prints_while_loading_goes_to_stderr(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("loud", {"loud": loss("loud") + "\n    print('hello')\n"})
    assert info(Registry(), "loud").status == "ok"
    out, err = capsys.readouterr()
    assert (out, err) == ("", "hello\n")


def test_two_distributions_with_one_kind_collide_and_keep_their_other_kinds(
    install: Install,
) -> None:
    install("dist-a", {"a": loss("twin"), "a2": loss("only_a")})
    install("dist-b", {"b": loss("twin")}, "2.0")
    reg = Registry()
    assert "twin" not in reg.kinds("loss")
    assert "only_a" in reg.kinds("loss")
    assert [info(reg, n).status for n in ("a", "a2", "b")] == ["collision", "ok", "collision"]
    why = reg.why_missing("loss", "twin")
    assert '"a" (dist-a 1.2)' in why
    assert '"b" (dist-b 2.0)' in why
    assert 'uninstall one of "dist-a" or "dist-b"' in why
    with pytest.raises(PluginError, match="dist-a"):
        reg.provider("loss", "twin")
    assert reg.problems().count(why) == 1


def test_a_default_kind_brought_again_is_a_collision(install: Install) -> None:
    install("pirate", {"p": loss("prior_preservation"), "p2": loss("own")})
    reg = Registry()
    assert "prior_preservation" not in reg.kinds("loss")
    assert "own" in reg.kinds("loss")
    why = reg.why_missing("loss", "prior_preservation")
    assert 'built in: uninstall "pirate", or have its kind renamed' in why
    assert info(reg, "default-loss").status == "collision"
    assert info(reg, "p").error == why


def test_equal_entry_point_names_in_two_distributions_both_load(install: Install) -> None:
    install("dist-a", {"plugin": loss("from_a")})
    install("dist-b", {"plugin": loss("from_b")})
    reg = Registry()
    assert {"from_a", "from_b"} <= set(reg.kinds("loss"))
    assert reg.provider("loss", "from_a").distribution == "dist-a"
    assert reg.provider("loss", "from_b").distribution == "dist-b"


def test_of_two_copies_of_a_distribution_the_first_on_the_path_counts(install: Install) -> None:
    install("copied", {"old": loss("old")}, "1.0", where="later")
    install("Copied", {"new": loss("new")}, "2.0", where="sooner")
    reg = Registry()
    assert "new" in reg.kinds("loss")
    assert "old" not in reg.kinds("loss")
    assert reg.provider("loss", "new").version == "2.0"


def test_a_first_copy_without_plugins_counts_too(install: Install, tmp_path: Path) -> None:
    install("copied", {"old": loss("old")}, "1.0", where="later")
    install("copied", {}, "2.0", where="sooner")
    (tmp_path / "sooner/copied-2.0.dist-info/entry_points.txt").unlink()
    assert "old" not in Registry().kinds("loss")


def test_a_dist_info_folder_that_is_not_named_by_the_rules_is_found(
    install: Install, tmp_path: Path
) -> None:
    install("nice-losses", {"nice": loss("nice")})
    site = tmp_path / "site"
    (site / "nice_losses-1.2.dist-info").rename(site / "nice-losses-1.2.dist-info")
    importlib.invalidate_caches()
    assert "nice" in Registry().kinds("loss")


def test_one_module_under_two_names_is_reported_once(install: Install, tmp_path: Path) -> None:
    install("twice", {"one": loss("once")})
    entry_points = tmp_path / "site/twice-1.2.dist-info/entry_points.txt"
    entry_points.write_text(entry_points.read_text() + "\ntwo = fake_plugin_1\n")
    reg = Registry()
    assert "once" in reg.kinds("loss")
    assert 'the same object as plugin "one"' in info(reg, "two").error


def test_damaged_metadata_breaks_only_its_own_distribution(
    install: Install, tmp_path: Path
) -> None:
    install("good", {"good": loss("fine")})
    install("garbled", {})
    (tmp_path / "site/garbled-1.2.dist-info/entry_points.txt").write_text("[dreambooth]\nnonsense")
    install("binary", {})
    (tmp_path / "site/binary-1.2.dist-info/entry_points.txt").write_bytes(b"[dreambooth]\n\xff")
    reg = Registry()
    assert "fine" in reg.kinds("loss")
    broken = [i for i in reg.infos if i.status == "broken" and "metadata" in i.error]
    assert len(broken) == 2


def test_a_plugin_that_asks_for_the_registry_while_loading_is_broken(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("eager", {"eager": "from dreambooth.plugins import registry\nregistry()\n"})
    monkeypatch.setattr("dreambooth.plugins.kinds._Process.current", None)
    assert "while it is being loaded" in info(registry(), "eager").error


def test_an_optional_hook_of_another_version_is_let_through(install: Install) -> None:
    more = "\n    @hookimpl(optionalhook=True)\n    def register_future():\n        return []\n"
    install("ahead", {"ahead": loss("ahead") + more})
    assert info(Registry(), "ahead").status == "ok"


def test_a_kind_of_another_slot_is_named() -> None:
    assert registry().why_missing("loss", "cfg") == '"cfg" is a sampler'
    assert registry().why_missing("loss", "nothing_like_it") == ""


def test_the_registry_is_made_once() -> None:
    assert registry() is registry()


def test_tracing_prints_load_times_and_hook_calls(
    install: Install, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install("nice", {"nice": loss("nice")})
    Registry()
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("DREAMBOOTH_TRACE_PLUGINS", "1")
    Registry()
    err = capsys.readouterr().err
    assert '"nice" (nice 1.2) imported in ' in err
    assert '"nice" register_losses() took ' in err


class Biases(FreezingPolicy):
    """Train biases."""

    kind: Literal["biases"] = "biases"

    def trainable(self, model: LoadedModel) -> Mapping[str, Parameter]:
        return {n: p for n, p in model.named_parameters("unet") if n.endswith(".bias")}


class Plain(Loss):
    kind: Literal["plain"] = "plain"
    scale: float = 1.0

    def rows(self, s: StepTensors) -> Tensor:
        return s.weight


def plugin_of(hook: str, *classes: type) -> SimpleNamespace:
    def implementation() -> list[type]:
        return list(classes)

    return SimpleNamespace(**{hook: hookimpl(implementation)})


def test_registry_with_adds_for_the_length_of_the_block() -> None:
    before = registry()
    one = plugin_of("register_losses", Plain)
    two = plugin_of("register_freezing_policies", Biases)
    with registry_with(one, two) as reg:
        assert registry() is reg
        assert reg.kinds("loss")["plain"] is Plain
        assert reg.kinds("freezing")["biases"] is Biases
        assert reg.provider("loss", "plain").origin == "registered here"
    assert registry() is before
    assert "plain" not in registry().kinds("loss")


def test_registry_with_a_broken_plugin_raises_and_changes_nothing() -> None:
    before = registry()
    broken = plugin_of("register_losses", Biases)
    with (
        pytest.raises(PluginError, match="Biases is not a subclass of Loss"),
        registry_with(broken),
    ):
        pass
    assert registry() is before


def test_registering_again_in_a_notebook_replaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dreambooth.plugins.kinds._Process.current", registry())
    register(plugin_of("register_losses", Plain))
    again = type("Plain", (Plain,), {"__module__": __name__})
    found = register(plugin_of("register_losses", again))
    assert (found.status, found.kinds) == ("ok", {"loss": ("plain",)})
    assert registry().kinds("loss")["plain"] is again
    register(plugin_of("register_freezing_policies", Biases), "cell")
    register(plugin_of("register_losses", again), "cell")
    assert "biases" not in registry().kinds("freezing")


def test_taking_part_names_every_plugin_a_job_uses(tmp_path: Path) -> None:
    subject = {"identifier": "ohwx", "class_noun": "dog"}
    data = {"kind": "folder", "path": tmp_path, "resolution": 64}
    with registry_with(plugin_of("register_losses", Plain)) as reg:
        job = Job.model_validate(
            {
                "subject": subject,
                "data": data,
                "loss": "plain",
                "freezing": Biases(),
                "prior": "none",
            }
        )
        found = {i.name: i for i in reg.taking_part(job)}
    assert found["SimpleNamespace"].kinds == {"loss": ("plain",)}
    assert found[f"{__name__}.Biases"].distribution is None
    assert found["default-sampler"].distribution == "dreambooth-trainer"
    assert "default-loss" not in found
    assert "default-metric" not in found
