"""Libraries that diffusers and PEFT import whenever they are installed, and nobody needs."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

from dreambooth_plugins.common.deferred import deferred, unseen

if TYPE_CHECKING:
    from pathlib import Path

ADAPTER = """
import sys, torch
from dreambooth_plugins.freezing.adapter.methods import Lora
from dreambooth_plugins.freezing.adapter.peft_layers import Layer, inject
from dreambooth_plugins.model.folder import loading
from dreambooth_plugins.model.folder import pipeline
from dreambooth_plugins.optimizer.adamw8bit import AdamW8bit

layers = torch.nn.ModuleDict({"to_q": torch.nn.Linear(8, 8)})
inject(layers, Lora(), {"to_q": Layer(2, 2.0)}, "unet")
assert "bitsandbytes" not in sys.modules

group = {"params": list(layers.parameters()), "lr": 1e-3}
print(type(AdamW8bit().build([group])).__mro__[1].__module__)
from diffusers.quantizers.bitsandbytes import utils
from diffusers.utils import is_bitsandbytes_available
from peft.import_utils import is_bnb_4bit_available, is_bnb_available
assert utils.bnb.nn.Linear4bit is sys.modules["bitsandbytes"].nn.Linear4bit
assert is_bitsandbytes_available() and is_bnb_available() and is_bnb_4bit_available()
"""


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_bitsandbytes_is_imported_by_its_optimizer_alone_and_says_nothing() -> None:
    """Afterwards diffusers and PEFT find it, as a notebook with quantized models wants it."""
    done = subprocess.run(
        [sys.executable, "-c", ADAPTER], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("bitsandbytes.optim")
    assert done.stderr == ""


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An importable module that nobody has imported."""
    (tmp_path / "lately.py").write_text("answer = 42\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "lately"
    sys.modules.pop("lately", None)


def test_a_deferred_library_is_imported_when_it_is_used(library: str) -> None:
    with deferred(library):
        stand_in = import_module(library)
    assert library not in sys.modules
    assert stand_in.answer == 42
    assert sys.modules[library] is not stand_in
    with pytest.raises(AttributeError):
        stand_in.question  # noqa: B018


def test_what_is_imported_already_stays(library: str) -> None:
    real = import_module(library)
    with deferred(library), unseen(library):
        assert import_module(library) is real
    assert sys.modules[library] is real


def test_an_unseen_library_passes_for_missing(library: str) -> None:
    with unseen(library), pytest.raises(ModuleNotFoundError):
        import_module(library)
    assert import_module(library).answer == 42


def test_a_library_that_is_not_installed_is_left_alone() -> None:
    with deferred("surely_not_installed"), pytest.raises(ModuleNotFoundError):
        import_module("surely_not_installed")
