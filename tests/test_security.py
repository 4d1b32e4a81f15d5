"""A job runs nothing but installed plugins, and no secret of the environment is written or shown.

Files of strangers: `test_security_files.py`; pictures: `test_security_pictures.py`.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import pytest
from PIL import Image
from rich.console import Console

from dreambooth import Callback, Tracker, cli, console
from dreambooth.cli.display.progress import LineReporter
from dreambooth.engine.loop import run
from dreambooth.engine.reporting import Quiet
from dreambooth.errors import JobError, PluginError, RunError
from dreambooth.helpers.text import redacted
from dreambooth.interfaces import Observer, Stop, Subject
from dreambooth.jobs.diagnostics import JobErrors
from dreambooth.jobs.loading import load_job
from dreambooth.runs.folder import RunFolder
from dreambooth_plugins.model.stable_diffusion import StableDiffusion

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PRODUCT = [ROOT / "src/dreambooth", ROOT / "plugins/dreambooth_plugins"]


ALLOWED_CALLS = {
    # Packages by names of ours: readers of further picture formats.
    "import_module": {"__init__.py", "deferred.py", "family.py", "images.py"},
    "subprocess.Popen": {"launcher.py"},
    # dreambooth.testing: this Python, with code of its own.
    "subprocess.run": {"base.py", "command.py"},
    "torch.load": {"loading.py", "encoders.py", "lpips.py"},
}
DANGEROUS = (
    "eval", "exec", "compile", "__import__", "import_module", "importlib.import_module",
    "pickle.load", "pickle.loads", "torch.load", "joblib.load", "yaml.load", "marshal.loads",
    "os.system", "os.popen", "os.execv", "os.execvp", "subprocess.run", "subprocess.Popen",
    "subprocess.call", "subprocess.check_output", "shutil.unpack_archive", "np.load",
)  # fmt: skip


def test_the_product_calls_nothing_that_runs_what_it_reads() -> None:
    found: dict[str, set[str]] = {}
    files = [f for root in PRODUCT for f in root.rglob("*.py")]
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert options.get("trust_remote_code", "False") == "False", file
            assert options.get("allow_pickle", "") != "True", file
            assert name not in {"extractall", "archive.extractall"}, file
            if name in DANGEROUS:
                found.setdefault(name.removeprefix("importlib."), set()).add(file.name)
            if name == "torch.load":
                assert options["weights_only"] == "True"
    assert all(files <= ALLOWED_CALLS.get(name, set()) for name, files in found.items()), found
    assert "torch.load" in found  # the search sees what there is


@pytest.fixture
def sprung(tmp_path: Path) -> Iterator[Path]:
    """Where a trap would leave its mark; it must not be there in the end."""
    yield tmp_path / "sprung"
    assert not (tmp_path / "sprung").exists()


BASE = """\
model: {kind: stable_diffusion, source: "builtin:tiny"}
subject: {identifier: ohwx, class_noun: dog}
data: {kind: folder, path: pictures, resolution: 64}
"""


@pytest.mark.parametrize(
    "value",
    ["!!python/object/apply:os.mkdir [sprung]", "!!python/name:os.system ''", "!!map {}",
     "!!python/module:antigravity ''", "!<tag:yaml.org,2002:python/object/new:os.mkdir> [sprung]",
     "!Thing {a: 1}"],
)  # fmt: skip
def test_tags_in_a_job_are_refused_at_their_place(
    tmp_path: Path, value: str, sprung: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "job.yaml"
    file.write_text(f"{BASE}callbacks: {value}\n")
    with pytest.raises(JobErrors) as caught:
        load_job(file)
    [found] = caught.value.diagnostics
    assert (found.line, found.column) == (4, 12)
    assert "tag" in found.message


PROBE = """
import json, sys
from dreambooth import cli
watched = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pty.")
seen = []
def hook(event, args):
    if event.startswith(watched) or (event == "import" and "canary" in str(args[0])):
        seen.append([event, repr(args)[:99]])
sys.addaudithook(hook)
codes = []
for job in sys.argv[1].split():
    sys.argv = ["dbt", "validate", job]
    try:
        cli.main()
    except SystemExit as stop:
        codes.append(stop.code)
print(json.dumps([codes, seen]))
"""
LOOKS_LIKE_CODE = ["canary", "canary:Thing", "canary.Thing", "canary.py", "./canary.py",
                   "$(mkdir sprung)", "`mkdir sprung`", "; mkdir sprung", "|mkdir sprung",
                   "__import__('canary')", "{subject.__class__}", "${HOME}"]  # fmt: skip
PLACES = ["freezing: {}", "callbacks: [{}]", "loss: {{kind: {}}}", "output: {}", "name: {}",
          "trackers: [{{kind: wandb, project: {}}}]", "train: {{device: {}}}",
          "samples: {{prompts: [{}]}}", "prior: {{kind: folder, path: {}}}"]  # fmt: skip


def test_texts_that_look_like_code_run_nothing(tmp_path: Path, sprung: Path) -> None:
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "pictures/a.png")
    (tmp_path / "canary.py").write_text("import os; os.mkdir('sprung')\n")
    jobs = ["good.yaml"]
    (tmp_path / "good.yaml").write_text(BASE)
    for place in PLACES:
        for text in LOOKS_LIKE_CODE:
            jobs.append(f"{len(jobs)}.yaml")
            (tmp_path / jobs[-1]).write_text(BASE + place.format(json.dumps(text)) + "\n")
    done = subprocess.run(
        [sys.executable, "-c", PROBE, " ".join(jobs)],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    codes, seen = json.loads(done.stdout.splitlines()[-1])
    assert seen == []
    assert codes[0] == 0
    assert len(codes) == len(jobs)
    assert set(codes) == {0, 2}
    assert "Traceback" not in done.stderr


def test_placeholders_reach_no_attribute() -> None:
    subject = Subject(identifier="{class_noun.__class__}", class_noun="dog")
    assert subject.fill("{identifier.__class__} {0} %s") == "{identifier.__class__} {0} %s"


SECRETS = {
    "HF_TOKEN": "hf_SENTINELaaaaaaaaaaaaaaaaaaaa",
    "WANDB_API_KEY": "SENTINELbbbbbbbbbbbbbbbbbbbbbbbb",
    "AWS_SECRET_ACCESS_KEY": "SENTINEL/cc+cccccccccccccccccccc",
    "MY_SERVICE_PASSWORD": "SENTINELddddddddd",
}
TOLD = (
    "401 for "
    + " ".join(SECRETS.values())
    + " at https://me:SENTINELpass@host/x?t=SENTINEL%2Fcc%2Bcccccccccccccccccccc"
)


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


class Leaky(Tracker):
    """Fails and tells its token."""

    kind: Literal["leaky"] = "leaky"

    def open(self, ctx: Any, resume_step: int) -> Any:
        ctx.warn(TOLD)
        raise RuntimeError(TOLD)


class LeakyStop(Callback):
    """Stops the run and tells a token."""

    kind: Literal["leaky_stop"] = "leaky_stop"

    def open(self, ctx: Any) -> Observer:
        class Stopping(Observer):
            def on(self, event: str, view: Any) -> Stop | None:
                return Stop(TOLD) if view.step == 2 else None

        return Stopping()


@pytest.mark.usefixtures("secrets")
def test_no_secret_reaches_a_runs_folder_the_cache_or_the_screen(
    small_job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, caplog: Any
) -> None:
    monkeypatch.setenv("DREAMBOOTH_CACHE", str(tmp_path / "cache"))
    caplog.set_level("DEBUG")
    job = small_job(
        samples={"every": 2, "per_prompt": 1}, trackers=["tensorboard", "jsonl", Leaky()],
        callbacks=[LeakyStop()], checkpoints={"every": 1},
    )  # fmt: skip
    first = run(job, reporter=LineReporter(Console(file=sys.stdout, width=100)))
    second = run(job.model_copy(update={"name": "again"}), reporter=Quiet())
    said = capfd.readouterr()
    assert first.steps == second.steps == 2
    for text in (said.out, said.err, caplog.text):
        assert "SENTINEL" not in text
    assert "<HF_TOKEN>" in said.out
    assert "<HF_TOKEN>" in caplog.text
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    for needed in ("run.log", "manifest.json", "state.json", "metrics.jsonl", "grid.png"):
        assert any(file.name == needed for file in files), needed
    for file in files:
        assert b"SENTINEL" not in file.read_bytes(), file
    assert "<WANDB_API_KEY>" in (first.folder / "run.log").read_text()
    assert "<WANDB_API_KEY>" in RunFolder(first.folder).read_manifest()["result"]["stop"]
    # Nothing but safetensors, JSON, YAML, text, pictures and TensorBoard's events is written.
    texts = {"", ".json", ".jsonl", ".yaml", ".log", ".md", ".txt"}
    suffixes = {file.suffix for file in files if not file.name.startswith("events.out.tfevents")}
    assert suffixes <= {".safetensors", ".png", *texts}


@pytest.fixture
def dbt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*args: str) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["dbt", *args])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        shown = capsys.readouterr()
        return SimpleNamespace(code=caught.value.code, text=shown.out + shown.err)

    return call


@pytest.mark.usefixtures("secrets")
@pytest.mark.parametrize("error", [JobError(TOLD, TOLD), PluginError(TOLD), ValueError(TOLD)])
@pytest.mark.parametrize("args", [("validate", "job.yaml"), ("validate", "--json", "job.yaml")])
def test_no_secret_is_shown_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dbt: Any, error: Exception, args: Any
) -> None:
    """As it may stand in what a hub or another library says."""

    def fail(self: StableDiffusion) -> None:
        raise error

    monkeypatch.chdir(tmp_path)
    Path("job.yaml").write_text(BASE)
    monkeypatch.setattr(StableDiffusion, "describe", fail)
    done = dbt(*args)
    assert done.code != 0
    assert "SENTINEL" not in done.text
    assert "<HF_TOKEN>" in done.text


@pytest.mark.usefixtures("secrets")
def test_what_is_no_secret_stays_readable(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false-or-true")
    monkeypatch.setenv("SHORT_TOKEN", "dog")
    text = "false-or-true: a photo of a dog at https://host/a@b from me@host"
    assert redacted(text) == text
    console.print_error(RunError("it broke", "mend it"))
    assert capsys.readouterr().err == "error: it broke\n  hint: mend it\n"
