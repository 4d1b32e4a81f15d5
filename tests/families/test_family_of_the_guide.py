"""The guide's family in diffusers folders is whole, and all that it is made of is on its page."""

from __future__ import annotations

import importlib
import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest

from dreambooth.plugins.classes import check_options
from dreambooth.testing import FamilyConformance, Trainer
from dreambooth.testing import family as suites
from dreambooth_plugins.model import family
from dreambooth_plugins.model.folder_model import FolderModel

PAGE = (Path(__file__).parents[2] / "plugins/guides/slots/model.md").read_text(encoding="utf-8")
SECTION = PAGE.split("## A family in diffusers folders")[1]


@pytest.fixture(scope="module")
def guide(tmp_path_factory):
    """Return the guide's package, imported from files."""
    root = tmp_path_factory.mktemp("guide")
    plugin, loaded, test = re.findall(r"```python\n(.*?)```", SECTION, flags=re.DOTALL)
    package = root / "my_family"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "plugin.py").write_text(plugin)
    (package / "loaded.py").write_text(loaded)
    assert 'component = MyFamily(source="builtin:tiny")' in test
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root)
        yield importlib.import_module("my_family.plugin")


LONG = {"a_run_with_it_resumes_exactly", "adapters_come_back_in_every_layout"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in LONG else [])
        for name, _ in suites.tests_of(FamilyConformance())
    ],
)
def test_the_guides_family_passes_its_suite(guide, name, tmp_path):
    made = guide.MyFamily(source="builtin:tiny")
    test = getattr(FamilyConformance, f"test_{name}")
    given = {"made": made, "trainer": Trainer(tmp_path), "tmp_path": tmp_path}
    wanted = inspect.signature(test).parameters
    test(FamilyConformance(), **{n: given[n] for n in given if n in wanted})


def test_a_fault_in_it_is_seen(guide, tmp_path, monkeypatch):
    loaded = importlib.import_module("my_family.loaded").LoadedMyFamily
    right = loaded.denoise
    monkeypatch.setattr(loaded, "denoise", lambda self, *given: -right(self, *given))
    with pytest.raises(AssertionError, match="a sign, a unit of time"):
        FamilyConformance().test_it_predicts_what_diffusers_predicts(
            guide.MyFamily(source="builtin:tiny"), Trainer(tmp_path)
        )


def test_everything_public_of_a_family_is_on_the_page():
    for name in family.__all__:
        assert f"`{name}" in SECTION, name
        assert getattr(family, name)
    for name in (f.name for f in fields(family.Part)):
        assert f"`{name}`" in SECTION, name
    assert family.FolderModel is FolderModel
    for cls, names in (
        (family.FolderModel, ("info", "loaded", "check_folder", "shipped")),
        (
            family.LoadedFolder,
            ("tokenizer_of", "read_prompt", "on_device", "index_options", "pipeline_options"),
        ),
    ):
        for name in names:
            signature = inspect.signature(getattr(cls, name))
            text = ", ".join(
                {"own_vae": "*, own_vae", "modules": "*modules"}.get(p, p)
                for p in list(signature.parameters)[1:]
            )
            assert f"\n| `{name}({text})`" in SECTION, name


def test_its_config_half_loads_without_torch(guide):
    """As `dbt validate` demands of every plugin."""
    suite = FamilyConformance()
    suite.test_its_module_loads_without_torch(guide.MyFamily(source="builtin:tiny"))
    check_options(guide.MyFamily)
