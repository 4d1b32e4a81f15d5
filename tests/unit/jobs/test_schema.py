"""The JSON Schema of a job: in step with the committed copy, and true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jsonschema
import pytest

from dreambooth import Loss, hookimpl, plugins
from dreambooth.component import Section
from dreambooth.jobs.diagnostics import JobErrors
from dreambooth.jobs.document import read_document
from dreambooth.jobs.loading import load_job
from dreambooth.jobs.schema import job_schema, prompts_schema, schema_text, write
from dreambooth.plugins import kinds
from dreambooth.plugins.slots import SLOTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from dreambooth.interfaces import StepTensors

ROOT = Path(__file__).parents[3]
REAL_REGISTRY = plugins.registry
COMMITTED = ROOT / "schemas" / "job.schema.json"

GOOD = """
# yaml-language-server: $schema=./job.schema.json
version: 1
name: my-dog
model: {kind: stable_diffusion, source: "builtin:tiny"}
subject: {identifier: ohwx, class_noun: dog}
data: {kind: folder, path: pics, resolution: [64, 128], crop: random}
prior: none
loss: prior_preservation
optimizer: {kind: adamw, lr: 5e-6}
train: {steps: 4, ema: {decay: 0.9}, max_grad_norm: null}
trackers: [jsonl, {kind: tensorboard}]
exports: [diffusers]
"""

BAD = {
    "unknown key": "trian: {}",
    "unknown option": "optimizer: {kind: adamw, lrr: 1}",
    "kind left out": "optimizer: {lr: 1e-4}",
    "unknown kind": "loss: mse",
    "bare kind with a required option": "data: folder",
    "out of range": "train: {steps: 0}",
    "wrong type": "train: {steps: many}",
    "one of a pair": "data: {kind: folder, path: p, resolution: [64]}",
    "unknown word": "exports: all",
}


class OwnKinds:
    """The registry without what other distributions bring."""

    def kinds(self, slot: str) -> Mapping[str, Any]:
        found = REAL_REGISTRY().kinds(slot)
        return {k: c for k, c in found.items() if c.__module__.startswith("dreambooth_plugins.")}


@pytest.fixture
def checker() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(job_schema())


def test_the_committed_schema_is_in_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "registry", OwnKinds)
    assert COMMITTED.read_text(encoding="utf-8") == schema_text(), (
        "the options of a default plugin or of the job changed; write the schema anew:\n"
        "    dbt schema --output schemas/job.schema.json"
    )


def test_the_committed_schema_of_prompts_is_in_step() -> None:
    committed = COMMITTED.with_name("prompts.schema.json").read_text(encoding="utf-8")
    assert committed == schema_text(prompts_schema())


def test_it_is_a_schema_of_2020_12() -> None:
    schema = job_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert "$id" not in schema
    jsonschema.Draft202012Validator.check_schema(schema)


def test_a_good_job_is_good_by_both(checker: Any, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(GOOD)
    load_job(path)
    checker.validate(read_document(path).data)


@pytest.mark.parametrize("line", BAD.values(), ids=BAD.keys())
def test_a_bad_job_is_bad_by_both(checker: Any, tmp_path: Path, line: str) -> None:
    path = tmp_path / "job.yaml"
    replaced = line.partition(":")[0] + ":"
    kept = [text for text in GOOD.splitlines() if not text.startswith(replaced)]
    path.write_text("\n".join([*kept, line]))
    with pytest.raises(JobErrors):
        load_job(path)
    assert not checker.is_valid(read_document(path).data)


def test_every_member_requires_its_kind_and_every_option_is_described() -> None:
    definitions = job_schema()["$defs"]
    members = {name: d for name, d in definitions.items() if "." in name}
    assert {name.split(".")[0] for name in members} == {s.name for s in SLOTS.values() if s.fields}
    for name, member in members.items():
        assert "kind" in member["required"], name
        assert member["title"] == name.split(".")[1]
        assert member["description"], name
        bare = [k for k, o in member["properties"].items() if not o.get("description")]
        assert bare == ["kind"], name
    for name, definition in definitions.items():
        titled = [k for k, option in definition["properties"].items() if "title" in option]
        assert not titled, name


class Weights(Section):
    """Weights of two terms."""

    near: float = 1.0
    """Weight of what is near,
    on two lines."""


class Nested(Loss):
    """A loss with a section of its own."""

    kind: Literal["nested"] = "nested"
    weights: Weights = Weights()
    """The weights."""

    def rows(self, s: StepTensors) -> Tensor:
        return s.weight


class Plugin:
    @hookimpl
    def register_losses(self) -> list[type[Loss]]:
        return [Nested]


def test_installed_plugins_are_in_the_schema_with_their_sections(checker: Any) -> None:
    with plugins.registry_with(Plugin()):
        schema = job_schema()
    validator = jsonschema.Draft202012Validator(schema)
    job = {
        "subject": {"identifier": "a", "class_noun": "b"},
        "data": {"kind": "folder", "path": "p"},
    }
    assert validator.is_valid({**job, "loss": {"kind": "nested", "weights": {"near": 2}}})
    assert validator.is_valid({**job, "loss": "nested"})
    assert not validator.is_valid({**job, "loss": {"kind": "nested", "weights": {"far": 2}}})
    assert not checker.is_valid({**job, "loss": "nested"})
    assert "Weight of what is near, on two lines." in json.dumps(schema)


def test_the_schema_is_written_whole(tmp_path: Path) -> None:
    write(tmp_path / "new" / "job.schema.json")
    assert json.loads((tmp_path / "new" / "job.schema.json").read_text()) == job_schema()
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["job.schema.json"]
