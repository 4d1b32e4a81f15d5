"""The README stays true: its job validates, its code runs, its commands exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image
from ruamel.yaml import YAML

from dreambooth.cli import starter
from dreambooth.jobs.loading import check_job
from dreambooth.plugins import registry_with

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
GUIDES = {path.stem: path.read_text() for path in (ROOT / "plugins/guides").glob("*.md")}

EVERYTHING = "\n".join([README, *GUIDES.values()])


def blocks(language, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.fixture
def job_file(tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (512, 512), "red").save(tmp_path / "pictures/a.png")

    def write(text):
        path = tmp_path / "job.yaml"
        path.write_text(text.replace("path/to/stable-diffusion-v1-5", "builtin:tiny"))
        return path

    return write


def test_the_ten_line_job_is_ten_lines_and_validates(job_file):
    [job] = blocks("yaml")
    assert len(job.splitlines()) == 10
    assert check_job(job_file(job)).name == "my-dog"


def test_the_plugin_is_complete_and_works_in_a_job(job_file, monkeypatch):
    plugin = ModuleType("readme_plugin")
    monkeypatch.setitem(sys.modules, plugin.__name__, plugin)
    code = blocks("python")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    exec(compile(code, "README.md", "exec"), plugin.__dict__)
    [job] = blocks("yaml")
    with registry_with(plugin):
        changed = re.sub("freezing:.*", "freezing: norms_and_biases", job)
        assert check_job(job_file(changed)).freezing.kind == "norms_and_biases"


def test_every_policy_shown_is_one_and_all_are_shown():
    from dreambooth import Job
    from dreambooth.plugins import registry

    section = GUIDES["training"].split("## ")[0]
    shown = re.findall(r"^\|[^|]+\| `([^`]+)` \| \S+ \|$", section, flags=re.MULTILINE)
    assert len(shown) > 8
    base = {"name": "n", "data": {"kind": "folder", "path": "p"},
            "subject": {"identifier": "auto", "class_noun": "dog"},
            "model": {"kind": "stable_diffusion", "source": "builtin:tiny"}}  # fmt: skip
    jobs = [Job(**base, freezing=YAML(typ="safe").load(text)) for text in shown]
    assert {job.freezing.kind for job in jobs} == set(registry().kinds("freezing"))


def test_every_format_is_shown_with_what_it_takes():
    from dreambooth.plugins import registry

    rows = re.findall(r"^\| `(\w+)` \| .+ \| .+ \| (.+) \|$", GUIDES["results"], flags=re.MULTILINE)
    words = {"weights": "whole weights", "adapter": "adapters", "embedding": "`token`"}
    kinds = registry().kinds("exporter")
    assert sorted(name for name, _ in rows) == sorted(kinds)
    for name, taken in rows:
        assert set(taken.split(", ")) == {words[kind] for kind in kinds[name].accepts}


def test_the_python_example_builds_a_job():
    code = blocks("python", GUIDES["python"])[0].split("result = ")[0]
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["job"].name == "my-dog"


def test_the_shown_error_is_what_one_gets(job_file):
    from dreambooth.jobs.diagnostics import JobErrors

    [shown] = [b for b in blocks("text") if "weight_deacy" in b]
    job = blocks("yaml")[0].replace("lr: 5e-6", "weight_deacy: 0.1")
    path = job_file(job)
    with pytest.raises(JobErrors) as caught:
        check_job(path)
    assert caught.value.located().replace(str(path), "job.yaml").strip() == shown.strip()


def commands():
    """Return every command of the console blocks as printed, comments left out."""
    lines = [x for block in blocks("console") for x in block.splitlines()]
    assert all(line.startswith("$ ") for line in lines)
    return [line.removeprefix("$ ").split("   # ")[0].strip() for line in lines]


def lay_pictures(folder):
    (folder / "photos").mkdir()
    for k in range(4):
        image = Image.new("RGB", (80, 72), (200, 40 * k, 90))
        image.paste((240, 220, 30), (10 * k, 10, 10 * k + 30, 50))
        image.save(folder / "photos" / f"{k}.jpg")


def test_the_console_blocks_work_as_printed(dbt, tmp_path, monkeypatch):
    """Each command as it stands there, one after the other; the job that `init` writes is short."""
    short = replace(
        starter.SMALL,
        usual=replace(starter.SMALL.usual, class_images=2, sampling_steps=2),
        prior_batch=2, batch_size=1, samples_every=2, per_prompt=1,
        sample_prompts=starter.SMALL.sample_prompts[:1],
    )  # fmt: skip
    monkeypatch.setattr(starter, "SMALL", short)
    monkeypatch.setattr(starter.Starter, "steps", 2)
    init = sys.modules["dreambooth.cli.init"]
    monkeypatch.setattr(init, "_default_model", lambda example: (init.TINY, []))
    lay_pictures(tmp_path)
    ran = []
    for command in commands():
        program, *arguments = shlex.split(command)
        if program == "dbt":
            done = dbt(*arguments, cwd=tmp_path)
            assert done.returncode == 0, f"{command}\n{done.stderr}"
            ran.append(arguments[0])
    assert ran == [
        "init", "validate", "doctor", "identifier", "run", "run", "sample", "evaluate", "report",
        "export",
    ]  # fmt: skip
    left = GUIDES["runs"].split("## What a run leaves")[1].split("```")[1]
    named = set(re.findall(r"^  ([\w.-]+)/? ", left, flags=re.MULTILINE))
    made = {path.name for path in (tmp_path / "my-dog/runs/my-dog").glob("[!.]*")}
    assert made - {"report.html"} == named


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".venv/.installed").exists(), reason="not made by make")
def test_the_console_blocks_work_as_printed_in_a_shell(tmp_path):
    """The same as a person types it, `make demo` too, with the job as `init` writes it."""
    lay_pictures(tmp_path)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "MAKEFLAGS": f"DEMO={tmp_path / 'demo'}"}
    for command in commands():
        if command.startswith(("git clone", "make test")):
            continue
        cwd = ROOT if command.startswith("make") else tmp_path
        done = subprocess.run(command, shell=True, cwd=cwd, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert list((tmp_path / "demo").glob("runs/*/samples/*/grid.png"))


def test_every_command_shown_exists():
    done = subprocess.run(
        [sys.executable, "-m", "dreambooth", "--help"], capture_output=True, text=True, check=True
    )
    shown = set(re.findall(r"(?:`|^\$ )dbt (\w+)", EVERYTHING, flags=re.MULTILINE))
    assert shown >= {"run", "validate", "init", "sample", "schema", "plugins"}
    for name in shown:
        assert re.search(rf"^\s+{name}\b", done.stdout, flags=re.MULTILINE), name


def test_every_make_target_shown_exists():
    makefile = (ROOT / "Makefile").read_text()
    shown = re.findall(r"(?:`|^\$ |^    )make ([\w-]+)", EVERYTHING, flags=re.MULTILINE)
    assert set(shown) >= {"test", "demo", "check", "bench", "test-slow"}
    for target in shown:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_every_file_and_guide_linked_or_named_is_there():
    pages = {ROOT / "README.md": README, ROOT / "plugins/README.md": None}
    pages |= {ROOT / "plugins/guides" / f"{name}.md": text for name, text in GUIDES.items()}
    for page, text in pages.items():
        text = text or page.read_text()
        for target in re.findall(r"\]\((?!http)([^)#]+)(?:#[\w-]+)?\)", text):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
    named = re.findall(r"`((?:src|plugins|tests)/[\w./-]+)`", GUIDES["contributing"])
    assert len(named) > 8
    for target in named:
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize(
    ("file", "tests"),
    [
        ("src/dreambooth/jobs/identifiers.py", "tests/unit/jobs/test_identifiers.py"),
        ("src/dreambooth/cli/display/bars.py", "tests/unit/cli"),
        ("plugins/dreambooth_plugins/loss/dco.py", "tests/plugins/loss"),
        ("tests/test_readme.py", "tests/test_readme.py"),
        ("src/dreambooth/errors.py", ""),
    ],
)
def test_the_fast_loop_runs_the_tests_that_mirror_a_file(file, tests):
    command = [sys.executable, ROOT / "tests/mirrored.py", ROOT / file]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == tests
