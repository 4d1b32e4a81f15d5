"""Options of a component that choose a kind themselves: read, checked, explained, written back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import jsonschema
import pytest
from pydantic import Field

from dreambooth import Loss, hookimpl, plugins
from dreambooth.cli.display.kinds import describe_kind
from dreambooth.component import JobPath, Section
from dreambooth.component.tagged import OneOf
from dreambooth.jobs.diagnostics import JobErrors
from dreambooth.jobs.loading import dump_job, load_job
from dreambooth.jobs.schema import job_schema

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Shape(Section):
    kind: str


class Round(Shape):
    """A round one."""

    kind: Literal["round"] = "round"
    radius: float = Field(default=1.0, gt=0.0)
    """Half its width."""


class Square(Shape):
    """A square one."""

    kind: Literal["square"] = "square"
    side: int
    """Its side."""
    picture: JobPath | None = None
    """A picture of it."""


class Shaped(Loss):
    """A loss with a shape."""

    kind: Literal["shaped"] = "shaped"
    shape: Annotated[Shape, OneOf("shape", Shape, Round, Square)] = Field(default="round")
    """The shape."""

    def rows(self, s: Any) -> Any:
        return s.weight


class Plugin:
    @hookimpl
    def register_losses(self) -> list[type[Loss]]:
        return [Shaped]


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with plugins.registry_with(Plugin()):
        yield


@pytest.fixture
def job_file(tmp_path: Path) -> Any:
    def write(loss: str) -> Path:
        path = tmp_path / "job.yaml"
        path.write_text(
            "subject: {identifier: ohwx, class_noun: dog}\n"
            f"data: {{kind: folder, path: pics}}\nloss: {loss}\n"
        )
        return path

    return write


def shape(path: Path, *override: str) -> Any:
    loss: Any = load_job(path, override).loss
    return loss.shape


def test_a_bare_name_a_mapping_and_the_default(job_file: Any) -> None:
    assert shape(job_file("shaped")) == Round()
    assert shape(job_file("{kind: shaped, shape: round}")) == Round()
    assert shape(job_file("{kind: shaped, shape: {kind: round, radius: 2}}")) == Round(radius=2)
    assert Shaped(shape=Round(radius=3)).shape == Round(radius=3)
    assert Shaped(shape={"kind": "square", "side": 2}) == Shaped(shape=Square(side=2))


def test_paths_inside_are_relative_to_the_job_file(job_file: Any) -> None:
    path = job_file("{kind: shaped, shape: {kind: square, side: 1, picture: a.png}}")
    assert shape(path).picture == path.parent / "a.png"


def test_overrides_reach_inside(job_file: Any) -> None:
    path = job_file("shaped")
    assert shape(path, "loss.shape.radius=4") == Round(radius=4)
    assert shape(path, "loss.shape={kind: square, side: 3}") == Square(side=3)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("{kind: shaped, shape: rund}", '3:29: unknown shape kind "rund"; did you mean "round"?'),
        (
            "{kind: shaped, shape: {kind: squar}}",
            '3:36: unknown shape kind "squar"; did you mean "square"?',
        ),
        ("{kind: shaped, shape: {radius: 1}}", '3:22: "loss.shape" needs a "kind"; known: round'),
        (
            "{kind: shaped, shape: {kind: round, radios: 1}}",
            '3:43: unknown key "radios"; did you mean "radius"?',
        ),
        (
            "{kind: shaped, shape: {kind: round, radius: 0}}",
            "3:51: loss.shape.radius must be greater than 0, is 0",
        ),
        ("{kind: shaped, shape: {kind: square}}", '"loss.shape" needs "side"; its side'),
        ("{kind: shaped, radius: 2}", 'it belongs in "loss.shape" (kind round)'),
    ],
)
def test_faults_are_placed_and_explained(job_file: Any, loss: str, message: str) -> None:
    with pytest.raises(JobErrors) as caught:
        load_job(job_file(loss))
    assert message in caught.value.message


def test_a_job_written_out_reads_back_equal(job_file: Any, tmp_path: Path) -> None:
    job = load_job(job_file("{kind: shaped, shape: {kind: square, side: 2}}"))
    again = tmp_path / "again.yaml"
    again.write_text(dump_job(job))
    assert load_job(again) == job


def test_the_schema_takes_what_the_reader_takes() -> None:
    valid = jsonschema.Draft202012Validator(job_schema()).is_valid
    base = {
        "subject": {"identifier": "a", "class_noun": "b"},
        "data": {"kind": "folder", "path": "p"},
    }

    def takes(value: Any) -> bool:
        return bool(valid({**base, "loss": {"kind": "shaped", "shape": value}}))

    assert takes("round")
    assert takes({"kind": "square", "side": 1})
    assert not takes("square")  # has an option without a default
    assert not takes({"radius": 1.0})
    assert not takes({"kind": "round", "side": 1})


def test_the_kinds_are_shown_as_the_options_type() -> None:
    option = describe_kind(plugins.registry(), "loss", "shaped")["options"][0]
    assert option["type"] == "round | square"
    assert option["default"] == "round"
