"""A run's folder becomes one page: bounded, harmless, private, and told in words."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from run_folders import write_run

from dreambooth.errors import UserError
from dreambooth_plugins.report.command import report
from dreambooth_plugins.report.gather import gather
from dreambooth_plugins.report.page import STATIC, in_script, render
from dreambooth_plugins.report.pictures.strip import spread
from dreambooth_plugins.report.private import Scrub
from dreambooth_plugins.report.writing import made

NASTY = '</script><script>alert("x")</script><img src=x onerror=alert(1)>\u202e\x1b[31m\'"&'
MB = 1_000_000


def block(html: str, name: str) -> object:
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', html, re.S)
    assert found
    return json.loads(found[1])


@pytest.fixture(scope="module")
def fox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("fox"), side=64, steps=400)


@pytest.fixture(scope="module")
def page(fox: Path) -> str:
    return made([fox], 8 * MB)[0]


def test_every_section_is_there_without_scripts(page: str) -> None:
    words = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    for text in (
        "Good likeness at step", "What was found", "It is beginning to copy", "From step to step",
        "a photo of a ck fox in the snow", "Likeness and freedom", "DINO ViT-S/16", "Curves",
        "Your pictures, as they were trained on", "96\u00a0×\u00a064, trained", "about 100 times",
        "How it was made",
        "train.steps", "NVIDIA RTX 4090", "Raw numbers", "dbt sample runs/my-fox",
    ):  # fmt: skip
        assert text in words
    assert words.count("<svg") >= 3
    assert 3 <= words.count("<img") <= 24


def test_only_the_pages_own_script_may_run(page: str) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    scripts = re.findall(r"<script>(.*?)</script>", page, re.S)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src &#39;sha256-{digest}&#39;" in policy[1]
    assert policy[1].startswith("default-src &#39;none&#39;; img-src data: blob:;")
    assert "unsafe" not in policy[1]
    assert " style=" not in page
    assert not re.search(r"\son\w+=", re.sub(r"<script.*?</script>", "", page, flags=re.S))


def test_nothing_is_asked_of_a_network(page: str) -> None:
    words = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    for address in re.findall(r'\s(?:src|href)="([^"]*)"', words):
        assert address.startswith(("data:image/webp;base64,", "#")), address


def test_each_picture_is_there_once(fox: Path) -> None:
    shown = gather([fox], 8 * MB)
    html = render(shown)
    waiting = block(html, "report-pictures")
    assert isinstance(waiting, dict)
    written = set(re.findall(r'data-picture="(p\d+)"', html))
    assert written | waiting.keys() == shown.pool.keys()
    assert not written & waiting.keys()


def test_texts_from_the_folder_are_harmless_wherever_they_stand(tmp_path: Path) -> None:
    run = write_run(
        tmp_path, side=32, steps=200, photos=2, prompts=(NASTY, "a ck fox"), captions=(NASTY,),
    )  # fmt: skip
    rows = [{"id": NASTY, "mark": "look", "sentence": NASTY, "evidence": NASTY, "next": NASTY}]
    (run / "findings.json").write_text(json.dumps({"findings": rows}))
    path = run / "evaluations/step-000100.json"
    data = json.loads(path.read_text())
    data["encoder"] = data["metrics"][0]["name"] = NASTY
    path.write_text(json.dumps(data))
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, NASTY: 1.0}))
    html = made([run], 8 * MB)[0]
    assert html.count("<script") == 3
    assert "<img src=x" not in html
    for char in ("\u202e", "\x1b"):
        assert char not in html
    film = block(html, "report-data")
    assert "alert" in json.dumps(film)  # it is shown, as text


def test_json_in_a_script_comes_back_as_it_was() -> None:
    value = {"a": "</script><!--\u2028\u2029&<>", "b": [1, None, "\u00e9\U0001f98a"]}
    text = in_script(value)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == value


def test_the_page_says_nothing_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnop")
    monkeypatch.setenv("HOME", "/home/anna")
    caption = f"a ck fox {tmp_path}/x hf_abcdefghijklmnop"
    run = write_run(tmp_path, side=32, steps=200, captions=(caption, "see /home/anna/secret.png"))
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["result"]["checks"] = [f"wrote {run}/final and /home/bert/model for /home/anna"]
    (run / "manifest.json").write_text(json.dumps(manifest))
    html = made([run], 8 * MB)[0]
    for private in (str(tmp_path), "anna", "bert", "hf_abcdef"):
        assert private not in html
    assert "…/pictures" in html
    assert "…/sd15" in html


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("see /srv/data/anna/dog.png now", "see …/dog.png now"),
        (r"C:\Users\anna\pictures\dog.png", "…/dog.png"),
        ("black and/or white, 3/4 view", "black and/or white, 3/4 view"),
        ("https://user:pw@host.org/a/b", "https://<login>@host.org/a/b"),
        ("stabilityai/sd-turbo", "stabilityai/sd-turbo"),
        ("/home/anna", "~"),
    ],
)
def test_paths_keep_their_last_part_alone(text: str, shown: str) -> None:
    assert Scrub(Path("/nowhere/else")).words(text) == shown


def test_what_differs_from_the_defaults_is_marked(tmp_path: Path) -> None:
    changes = {"loss.kind": "prior_preservation", "loss.prior_weight": 0.5, "optimizer.lr": 1e-5}
    run = write_run(tmp_path, side=32, steps=200, changes=changes)
    options = {o.key: o.changed for o in gather([run], MB).runs[0].options}
    assert options["loss.prior_weight"]
    assert options["optimizer.lr"]
    assert options["subject.identifier"]
    for key in ("loss.kind", "optimizer.kind", "optimizer.weight_decay", "log.every", "exports"):
        assert options[key] is False, key
    assert "output" not in options


def test_a_job_of_a_missing_plugin_is_shown_unmarked(tmp_path: Path) -> None:
    run = write_run(tmp_path, side=32, steps=200)
    job = json.loads((run / "job.yaml").read_text())
    (run / "job.yaml").write_text(json.dumps(job | {"loss": {"kind": "not_installed"}}))
    shown = gather([run], MB).runs[0]
    assert {o.changed for o in shown.options} == {None}
    assert any("a plugin is missing here" in note for note in shown.notes)
    render(gather([run], MB))


def test_steps_are_spread_with_first_last_and_those_that_matter() -> None:
    steps = list(range(0, 1001, 10))
    kept = spread(steps, 8, always=[370, 5])
    assert len(kept) == 8
    assert {0, 370, 1000} <= set(kept)
    assert max(b - a for a, b in itertools.pairwise(kept)) <= 300
    assert spread([1, 2, 3], 8) == [1, 2, 3]


def test_pictures_give_way_to_the_size_and_the_page_says_so(tmp_path: Path) -> None:
    prompts = tuple(f"a ck fox, scene {i}" for i in range(14))
    run = write_run(tmp_path, steps=1000, every=100, prompts=prompts, side=144, per_prompt=1)
    whole, shown = made([run], 8 * MB)
    samples = shown.runs[0].samples
    assert (len(samples.steps), len({row.prompt for row in samples.rows})) == (8, 12)
    assert "12 of 14 prompts" in whole
    small, fewer = made([run], 400_000)
    assert len(small.encode()) <= 400_000 < len(whole.encode())
    assert 0 < len(fewer.pool) < len(shown.pool)
    with pytest.raises(UserError, match="even without pictures"):
        made([run], 60_000)


def test_a_file_that_leads_out_of_the_run_is_not_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path, side=32, steps=200, every=200, per_prompt=1)
    listing = run / "samples/step-000200/prompts.json"
    rows = json.loads(listing.read_text())
    first = run / "samples/step-000200" / rows[0]["file"]
    first.unlink()
    first.symlink_to(tmp_path / "pictures/00.png")
    before = gather([run], MB).runs[0].samples.rows[0].pictures
    assert list(before) == [0]
    listing.write_text(json.dumps([rows[0] | {"file": "../../../../pictures/00.png"}]))
    assert gather([run], MB).runs[0].samples.steps == [0]


def test_removed_and_single_pictures_are_told_in_words(tmp_path: Path) -> None:
    run = write_run(tmp_path, side=32, steps=200, every=100, per_prompt=1, found=False)
    for path in list((run / "samples").glob("step-*/*.png"))[:-1]:
        path.unlink()
    notes = " ".join(gather([run], MB).runs[0].notes)
    assert "11 of 12 sample pictures are no longer in the run's folder" in notes
    assert "one sample picture only" in notes
    shutil.rmtree(run / "samples")
    shutil.rmtree(tmp_path / "pictures")
    shutil.rmtree(run / "evaluations")
    (run / "metrics.jsonl").unlink()
    html = made([run], MB)[0]
    for words in ("drew no pictures, or they are gone", "Nothing was judged", "No pictures were"):
        assert words in html
    assert "photographs are not shown: moved or changed since the run" in html


def test_a_damaged_manifest_is_no_traceback(tmp_path: Path) -> None:
    run = write_run(tmp_path, side=32, steps=200)
    manifest = json.loads((run / "manifest.json").read_text())
    manifest |= {"versions": 3, "trainable": ["x"], "held_out": {"a": 1}, "machine": {}}
    manifest["job"] |= {"model": "text", "subject": None, "data": []}
    (run / "manifest.json").write_text(json.dumps(manifest))
    html = made([run], MB)[0]
    assert "a subject that is not named" in html
    assert "they did not come from a folder" in html


def test_damaged_inputs_are_left_out_and_named(tmp_path: Path) -> None:
    run = write_run(tmp_path, side=32, steps=200, every=100)
    (run / "findings.json").write_text('{"findings": [{"mark": "purple", "sentence": "x"}]}')
    (run / "evaluations/step-000100.json").write_text("[" * 100_000)
    (run / "evaluations/step-000200.json").write_text('{"step": -4}')
    notes = " ".join(gather([run], MB).runs[0].notes)
    assert "findings.json is left out: findings.0.mark" in notes
    assert "evaluations/step-000100.json is left out: it cannot be read" in notes
    assert "evaluations/step-000200.json is left out: step" in notes


def test_several_runs_say_what_differs_first(tmp_path: Path) -> None:
    first = write_run(tmp_path, "a", side=32, steps=200)
    second = write_run(tmp_path, "b", side=32, steps=200, changes={"optimizer.lr": 1e-4}, lift=0.1)
    html, shown = made([first, second], 8 * MB)
    assert html.index("What differs") < html.index("What was found")
    table = html[html.index("What differs") : html.index("What was found")]
    assert re.findall(r"<code>([\w.]+)</code>", table) == ["optimizer.lr"]
    assert "Likeness to your photographs: b is better by 0." in html
    assert len(shown.runs) == 2


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: run / "nowhere", "is not there"),
        (lambda run: run / "job.yaml.bak", "is not there"),
        (lambda run: run / "metrics.jsonl", "is a file, not a run's folder"),
        (lambda run: run / "samples", "it has no job.yaml"),
    ],
)
def test_what_is_no_run_is_told(fox: Path, spoil, message: str) -> None:
    with pytest.raises(UserError, match=message) as told:
        report([spoil(fox)])
    assert told.value.hint


def test_a_deleted_run_a_run_twice_and_too_many_are_told(tmp_path: Path, fox: Path) -> None:
    left = tmp_path / "left"
    left.mkdir()
    (left / "job.yaml").write_text("name: left")
    with pytest.raises(UserError, match=r"what is left of a deleted one: it has no manifest\.json"):
        report([left])
    with pytest.raises(UserError, match="named twice"):
        report([fox, fox / ".." / fox.name])
    with pytest.raises(UserError, match="7 runs are more"):
        report([fox] * 7)
    with pytest.raises(UserError, match=r"does not end in \.html"):
        report([fox], out=tmp_path / "page.txt")


def test_the_command_writes_the_page_and_a_zip(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path, side=32, steps=200)
    report([run], with_originals=True)
    out = capsys.readouterr().out
    assert re.search(r"report   .*report\.html \(\d+ kB\)", out)
    assert "verdict  my-fox: Good likeness" in out
    with zipfile.ZipFile(run / "report.zip") as archive:
        names = archive.namelist()
    assert names[0] == "report.html"
    assert "my-fox/step-000100/000.png" in names
    assert [p.name for p in run.iterdir() if p.name.startswith(".")] == []


def test_it_is_a_command_of_dbt_and_needs_no_torch(fox: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    code = (
        "import sys; from dreambooth.cli import app; "
        "sys.argv = ['dbt', 'report', *sys.argv[1:]]; app(standalone_mode=False); "
        "assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code, str(fox), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert out.is_file()
    command = [sys.executable, "-m", "dreambooth", "report", str(tmp_path / "no")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "is not there" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_built_files_are_small_and_safe_to_inline() -> None:
    script = (STATIC / "page.js").read_bytes()
    assert len(script) <= 120_000
    assert b"</script" not in script.lower()
    assert b"\r" not in script
    assert b"<!--" not in script
    style = (STATIC / "page.css").read_text()
    assert "</style" not in style
    assert "url(" not in style
    assert b"MIT License" in script


@pytest.mark.parametrize(("pictures", "told"), [(40, "It is green."), (1, "It is beginning")])
def test_findings_are_those_of_the_most_pictures_and_no_numbers_are_mixed(
    tmp_path: Path, pictures: int, told: str
) -> None:
    """`dbt evaluate` drew other pictures of the last step, through another encoder."""
    run = write_run(tmp_path, side=32, steps=200, photos=2)
    data = json.loads((run / "evaluations/step-000200.json").read_text())
    own = data["pictures"][0]
    data |= {"encoder": "ENet-I", "pictures": [{**own, "values": {"drift": 0.5}}] * pictures}
    (run / "evaluations/step-000200-1a2b3c4d.json").write_text(json.dumps(data))
    rows = [{"id": "green", "mark": "problem", "sentence": "It is green."}]
    (run / "evaluations/findings-step-000200-1a2b3c4d.json").write_text(
        json.dumps({"findings": rows})
    )
    [shown] = gather([run], 8 * MB).runs
    assert shown.findings[0].sentence.startswith(told)
    html = made([run], 8 * MB)[0]
    assert f"Step 200, {pictures} drawn for it, ENet-I" in html
    film = block(html, "report-data")
    assert isinstance(film, dict)
    values = [v["values"].keys() for v in film["runs"][0]["values"]]
    assert values
    assert not any("drift" in names for names in values)
