"""Keys of other trainers' configs: every one is answered, and what is named here exists."""

from __future__ import annotations

import re
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ruamel.yaml import YAML

from dreambooth.job import Job
from dreambooth.jobs.aliases import reply_to
from dreambooth.jobs.diagnostics import JobErrors
from dreambooth.jobs.keys import homes, model_at
from dreambooth.jobs.loading import load_job

if TYPE_CHECKING:
    from collections.abc import Iterator

KEYS = tomllib.loads((Path(__file__).parents[2] / "data/foreign_keys.toml").read_text())
ALL = sorted({key for keys in KEYS.values() for key in keys})
ANSWERS = files("dreambooth.jobs.aliases") / "foreign_keys.toml"
REPLIES = tomllib.loads(ANSWERS.read_text())["reply"]


def faults(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(JobErrors) as caught:
        load_job(path)
    return [d.headline().removeprefix(f"{path}:") for d in caught.value.diagnostics]


@pytest.mark.parametrize("trainer", KEYS)
def test_every_key_is_answered_by_name_and_none_with_a_guess(tmp_path: Path, trainer: str) -> None:
    foreign = [key for key in KEYS[trainer] if key not in Job.model_fields]
    said = faults(tmp_path, "".join(f"{key}: 1\n" for key in foreign))
    unknown = [line for line in said if "unknown key" in line]
    assert len(unknown) == len(foreign) > 15
    for line in unknown:
        _, _, hint = line.partition("; ")
        assert len(hint) >= 15, line
        assert not hint.startswith(("did you mean", "known:", "no options")), line


def test_it_is_answered_where_it_stands_and_as_an_argument(tmp_path: Path) -> None:
    text = "learning_rate: 1e-4\ntrain: {max-train-steps: 5}\noptimizer: {kind: adamw, beta1: 1}\n"
    said = faults(tmp_path, text)
    assert '1:1: unknown key "learning_rate"; here it is called optimizer.lr' in said
    assert '2:9: unknown key "max-train-steps"; here it is called train.steps' in said
    assert '3:26: unknown key "beta1"; here it is called optimizer.betas' in said
    assert reply_to("--pretrained_model_name_or_path") == "here it is called model.source"


def test_epochs_are_not_steps() -> None:
    for key in ("epochs", "num_train_epochs", "max_train_epochs"):
        assert "called" not in reply_to(key)
        assert "steps = epochs x pictures / (batch_size x accumulation)" in reply_to(key)


def test_the_closest_pattern_answers() -> None:
    assert "kind: oft" in reply_to("oft_scaled")
    assert "other families" in reply_to("text_encoder_2_layer_skip")
    assert "adapter, targets" in reply_to("target_modules")  # before target_*
    assert reply_to("surely_nobodys_key") == ""


def named() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each place a reply sends people to: `freezing: {kind: adapter, init: ...}` as data."""
    for reply in REPLIES:
        for place in reply.get("called", "").split(" or "):
            if place:
                path, _, value = place.partition(": ")
                data: Any = YAML(typ="safe").load(value.replace("...", "x")) if value else "x"
                for key in reversed(path.split(".")):
                    data = {key: data}
                yield place, data


def mappings(data: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(data, dict):
        for key, value in data.items():
            yield at, key
            yield from mappings(value, (*at, key))


@pytest.mark.parametrize(("place", "data"), list(named()), ids=lambda value: str(value)[:60])
def test_every_place_that_is_named_exists(place: str, data: dict[str, Any]) -> None:
    for at, key in mappings(data):
        model = model_at(Job, data, at)
        if model is not None:
            assert key in model.model_fields, place
        elif len(at) == 1 and key != "kind":  # of a kind that is not named: some kind has it
            assert any(f'"{at[0]}"' in home for home in homes(Job, key)), place


def test_every_option_that_is_mentioned_exists() -> None:
    sections = "|".join(Job.model_fields)
    texts = [r.get("instead", "") + r.get("told", "") for r in REPLIES]
    found = {m for text in texts for m in re.findall(rf"\b({sections})\.([a-z_]+)\b", text)}
    assert len(found) > 10
    for section, option in found - {("optimizer", "kind")}:
        assert any(f'"{section}"' in home for home in homes(Job, option)), (section, option)


def test_no_key_has_two_answers_and_none_of_ours_has_one() -> None:
    keys = [key for reply in REPLIES for key in reply["keys"]]
    assert len(keys) == len(set(keys))
    assert not set(keys) & set(Job.model_fields)
