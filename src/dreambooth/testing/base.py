"""What every component must be, whatever its slot."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from dreambooth.component import Component, Problem
from dreambooth.component.docs import option_docs
from dreambooth.plugins.slots import SLOTS
from dreambooth.testing.trainer import Trainer

if TYPE_CHECKING:
    from pathlib import Path

    from dreambooth.plugins.slots import SlotInfo
    from dreambooth.testing.trainer import Ran


class Conformance:
    """Tests for one component; set `component`, or override `make` where it needs a folder.

    `sections` are further sections of the jobs it is tried in, where it needs some.
    """

    __test__ = False
    slot: ClassVar[str]
    component: Any = None
    sections: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Collect subclasses that have something to test."""
        super().__init_subclass__(**kwargs)
        cls.__test__ = cls.component is not None or cls.make is not Conformance.make

    def make(self, pictures: Path) -> Component:
        """Return the component to test; `pictures` is a folder of three small ones."""
        made: Component = self.component
        return made

    @pytest.fixture
    def trainer(self, tmp_path: Path) -> Trainer:
        """Return a trainer whose jobs lie in the test's folder."""
        return Trainer(tmp_path)

    @pytest.fixture
    def made(self, trainer: Trainer) -> Any:
        """Return the component, as its plugin would bring it."""
        return self.make(trainer.pictures)

    def filled(self, made: Component) -> dict[str, Any]:
        """Return the sections of a job that has the component in its slot."""
        field = self.info.field
        if not field:  # a command names it, and no job
            return dict(self.sections)
        many = field in {"trackers", "metrics", "findings", "exports", "callbacks"}
        return {**self.sections, field: [made] if many else made}

    @property
    def info(self) -> SlotInfo:
        """The slot."""
        return SLOTS[self.slot]

    def test_its_class_satisfies_the_slot(self, made: Any) -> None:
        """It has a kind, and methods that take what they are given."""
        from dreambooth.plugins.classes import check_class, check_methods, check_options

        check_class(type(made), self.info)
        check_methods(type(made), self.info)
        check_options(type(made))

    def test_its_options_are_frozen_and_say_all_of_it(self, made: Any) -> None:
        """Two of equal options are equal, and one of them can be made from the other's data."""
        name = next(iter(type(made).model_fields))
        with pytest.raises(ValueError, match="frozen"):
            setattr(made, name, getattr(made, name))
        again = type(made).model_validate(made.model_dump())
        assert again == made, (
            f"{type(made).__name__} made from its own options is not equal to itself: keep no "
            "state in a component, and give what a run keeps to what `open` returns"
        )
        assert again.key() == made.key(), "key() must be a function of the options alone"

    def test_unknown_options_are_refused(self, made: Any) -> None:
        """A misspelt option is no option."""
        with pytest.raises(ValueError, match="no_such_option"):
            type(made).model_validate({**made.model_dump(), "no_such_option": 1})

    def test_people_can_read_what_it_and_its_options_are(self, made: Any) -> None:
        """The class and each option say what they mean."""
        cls: Any = type(made)
        own = (vars(cls).get("__doc__") or "").strip()
        assert own, f"{cls.__name__} has no docstring: `dbt plugins show {made.kind}` shows it"
        silent = sorted(set(cls.model_fields) - {"kind"} - set(option_docs(cls)))
        assert not silent, (
            f"options without a docstring below them: {', '.join(silent)}; it is what the schema "
            "and `dbt plugins show` say about them"
        )

    def test_its_key_says_every_option(self, made: Any) -> None:
        """Caches are named by it."""
        missing = sorted(set(type(made).model_fields) - set(made.key()))
        assert not missing, (
            f"key() leaves out {', '.join(missing)}: two components that differ there would share "
            "a cache entry"
        )

    def test_its_module_loads_without_torch(self, made: Any) -> None:
        """`dbt validate` loads every installed plugin and has half a second for all of them."""
        module = type(made).__module__
        file = str(getattr(sys.modules.get(module), "__file__", None) or "")
        if not file or module.rpartition(".")[2].startswith(("test_", "conftest", "__main__")):
            pytest.skip("defined in the test itself")
        heavy = ("torch", "diffusers", "transformers", "accelerate")
        code = f"import sys, {module}; print(*[m for m in {heavy!r} if m in sys.modules])"
        path = "import sys; sys.path[:] = " + repr(sys.path) + "; "
        done = subprocess.run(
            [sys.executable, "-c", path + code], check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{module} cannot be imported alone: {done.stderr[-600:]}"
        assert not done.stdout.strip(), (
            f"{module} imports {done.stdout.strip()} when it is loaded: import it inside the "
            "methods that need it, or under `if TYPE_CHECKING:`"
        )

    def test_a_job_takes_it_and_its_check_answers_problems(
        self, made: Any, trainer: Trainer
    ) -> None:
        """`check` runs before anything is loaded, and finds nothing wrong in this job."""
        from dreambooth.jobs.checks import preflight

        job = trainer.job(**self.filled(made))
        for info in (job.model.describe(), None):
            for found in made.check(job, info):
                assert isinstance(found, Problem), (
                    f"check() gives {found!r} where a Problem is wanted: "
                    'yield Problem(("section", "option"), "what is wrong", "what to do")'
                )
        problems = preflight(job)
        if not self.info.fields:
            problems += list(made.check(None, None))
        assert not problems, (
            "the job this suite tries it in is refused: "
            + "; ".join(f"{p.message} ({p.hint})" for p in problems)
            + "; set `sections` to what it needs"
        )

    def test_the_schema_has_it_with_its_options(self, made: Any) -> None:
        """Editors complete it."""
        from dreambooth import hookimpl
        from dreambooth.jobs.schema import job_schema
        from dreambooth.plugins import registry, registry_with

        cls = type(made)
        if not self.info.fields:
            assert set(cls.model_json_schema()["properties"]) == set(cls.model_fields)
            return
        if registry().kinds(self.slot).get(made.kind) is cls:
            schema = job_schema()
        else:
            plugin = type("Plugin", (), {self.info.hook: staticmethod(hookimpl(lambda: [cls]))})()
            with registry_with(plugin):
                schema = job_schema()
        shown = schema["$defs"][f"{self.slot}.{made.kind}"]["properties"]
        assert set(shown) == set(cls.model_fields)

    def test_it_leaves_global_randomness_alone(self, made: Any, trainer: Trainer) -> None:
        """What is drawn is a function of seed, stream and index."""
        import torch

        before = torch.get_rng_state()
        self.exercise(made, trainer)
        assert torch.equal(before, torch.get_rng_state()), (
            "torch's global generator was used: draw from ctx.random(stream, *index), or from a "
            "torch.Generator made of the seed that is given"
        )

    def exercise(self, made: Any, trainer: Trainer) -> Any:
        """Use the component once; suites say how."""
        raise NotImplementedError

    def two_runs(self, made: Any, trainer: Trainer, **sections: Any) -> tuple[Ran, Ran]:
        """Return a straight run and a resumed one, held to be equal to the bit."""
        from dreambooth.testing.trainer import same_bits

        whole, parts = trainer.resumed(**{**self.filled(made), **sections})
        assert parts.losses == whole.losses, (
            f"a resumed run has other losses ({parts.losses}) than a straight one "
            f"({whole.losses}): something depends on what happened before, not on seed, step and "
            "index alone; state belongs into what the engine checkpoints"
        )
        odd = same_bits(whole.weights(), parts.weights())
        assert not odd, f"a resumed run ends in other weights: {', '.join(odd[:3])}"
        return whole, parts
