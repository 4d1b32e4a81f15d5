from __future__ import annotations

from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dreambooth.helpers.pictures import grid
from dreambooth.plugins import registry
from dreambooth_plugins.tracker.event_file import NAME
from dreambooth_plugins.tracker.tensorboard import TensorBoard

RED, GREEN, BLUE = [Image.new("RGB", (6, 4), c) for c in ("red", "lime", "blue")]


OPTIONS = {
    "name": "my-dog",
    "train": {"steps": 4, "seed": 0, "deterministic": False, "ema": None},
    "optimizer": {"kind": "adamw", "lr": 5e-6},
    "trackers": [{"kind": "tensorboard"}],
}
JOB = SimpleNamespace(name="my-dog", resolved=lambda: OPTIONS)


def opened(folder, resume_step=0, **options):
    return TensorBoard(**options).open(SimpleNamespace(folder=folder, job=JOB), resume_step)


def read(folder):
    accumulator = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0})
    accumulator.Reload()
    return accumulator


def scalars(folder, tag="train/loss"):
    return [(event.step, event.value) for event in read(folder).Scalars(tag)]


def texts(folder, tag):
    return [
        (event.step, event.tensor_proto.string_val[0].decode())
        for event in read(folder).Tensors(tag)
    ]


def pictures(folder, tag):
    return [
        (event.step, np.asarray(Image.open(BytesIO(event.encoded_image_string))))
        for event in read(folder).Images(tag)
    ]


def write(writer, steps):
    for step in steps:
        writer.scalars(step, {"train/loss": step / 4, "train/lr": 0.5})
        writer.images(step, "samples", [RED, GREEN, BLUE], ["r", "g", "b"])


def test_scalars_pictures_and_text_read_back(tmp_path):
    writer = opened(tmp_path)
    writer.text("job", "name: my-dog\n")
    write(writer, [10, 20])
    writer.flush()
    assert scalars(tmp_path) == [(10, 2.5), (20, 5.0)]
    assert scalars(tmp_path, "train/lr") == [(10, 0.5), (20, 0.5)]
    assert texts(tmp_path, "job") == [(0, "```\nname: my-dog\n\n```")]
    assert texts(tmp_path, "samples/captions") == [(s, "1. r\n2. g\n3. b") for s in (10, 20)]
    (first, sheet), (second, _) = pictures(tmp_path, "samples")
    assert (first, second) == (10, 20)
    assert sheet.shape == (8, 12, 3)
    assert sheet[0, 0].tolist() == [255, 0, 0]
    assert sheet[0, 6].tolist() == [0, 255, 0]
    assert sheet[4, 0].tolist() == [0, 0, 255]
    assert sheet[4, 6].tolist() == [0, 0, 0]
    writer.close()


def test_text_is_known_to_the_text_dashboard(tmp_path):
    writer = opened(tmp_path)
    writer.text("job", "name: my-dog")
    writer.close()
    metadata = read(tmp_path).SummaryMetadata("job")
    assert metadata.plugin_data.plugin_name == "text"


def test_the_job_is_a_row_of_hparams_once(tmp_path):
    from tensorboard.plugins.hparams import metadata

    writer = opened(tmp_path)
    write(writer, [10])
    writer.close()
    opened(tmp_path, 10).close()
    found = read(tmp_path)
    tags = found.PluginTagToContent(metadata.PLUGIN_NAME)
    start = metadata.parse_session_start_info_plugin_data(tags[metadata.SESSION_START_INFO_TAG])
    assert start.group_name == "my-dog"
    values = {name: getattr(v, v.WhichOneof("kind")) for name, v in start.hparams.items()}
    assert values == {
        "name": "my-dog",
        "train.steps": 4.0,
        "train.seed": 0.0,
        "train.deterministic": False,
        "optimizer.kind": "adamw",
        "optimizer.lr": 5e-6,
        "trackers": "[{'kind': 'tensorboard'}]",
    }
    assert len(found.Tensors(metadata.SESSION_START_INFO_TAG)) == 1


def test_histograms_are_asked_for_and_read_back(tmp_path):
    from dreambooth.interfaces import Histogram

    plain = opened(tmp_path / "plain")
    assert not plain.wants_histograms()
    plain.close()
    writer = opened(tmp_path, histograms=True)
    assert writer.wants_histograms()
    writer.histogram(5, "weights/unet", Histogram([-1.0, 0.0, 2.0], [3.0, 4.0], 6.5, 9.25))
    writer.close()
    [event] = read(tmp_path).Histograms("weights/unet")
    found = event.histogram_value
    assert event.step == 5
    assert (found.min, found.max, found.num, found.sum, found.sum_squares) == (-1, 2, 7, 6.5, 9.25)
    assert (list(found.bucket_limit), list(found.bucket)) == ([0, 2], [3, 4])


def test_pictures_one_by_one_or_not_at_all(tmp_path):
    for mode in ("each", "none"):
        writer = opened(tmp_path / mode, images=mode)
        writer.images(5, "samples", [RED, GREEN], ["r", "g"])
        writer.close()
    assert read(tmp_path / "each").Tags()["images"] == ["samples/0", "samples/1"]
    assert pictures(tmp_path / "each", "samples/1")[0][1][0, 0].tolist() == [0, 255, 0]
    assert read(tmp_path / "none").Tags()["images"] == []


def test_a_resumed_run_shows_each_step_once(tmp_path):
    first = opened(tmp_path)
    first.text("job", "a job")
    write(first, [10, 20, 30, 40])
    first.close()
    second = opened(tmp_path, 20)
    write(second, [30, 40, 50])
    second.close()
    assert scalars(tmp_path) == [(s, s / 4) for s in (10, 20, 30, 40, 50)]
    assert [step for step, _ in pictures(tmp_path, "samples")] == [10, 20, 30, 40, 50]
    assert [step for step, _ in texts(tmp_path, "job")] == [0]
    assert [path.name for path in (tmp_path / "tensorboard").iterdir()] == [NAME]


@pytest.mark.parametrize("lost", [1, 5, 20, 100])
def test_a_torn_last_record_is_cut_away(tmp_path, lost):
    writer = opened(tmp_path)
    write(writer, [10, 20])
    writer.scalars(20, {"late": 1.0})
    writer.images(20, "last", [Image.effect_noise((30, 30), 50)], [])
    writer.close()
    path = tmp_path / "tensorboard" / NAME
    path.write_bytes(path.read_bytes()[:-lost])
    again = opened(tmp_path, 20)
    write(again, [30])
    again.close()
    assert scalars(tmp_path) == [(10, 2.5), (20, 5.0), (30, 7.5)]
    assert read(tmp_path).Tags()["images"] == ["samples"]


def test_a_record_whose_bytes_never_reached_the_disk_is_cut_away(tmp_path):
    writer = opened(tmp_path)
    write(writer, [10])
    writer.close()
    path = tmp_path / "tensorboard" / NAME
    whole = path.read_bytes()
    for lost in (bytes(64), whole[:12] + bytes(int.from_bytes(whole[:8], "little") + 4)):
        path.write_bytes(whole + lost)
        opened(tmp_path, 10).close()
        assert path.read_bytes() == whole


def test_nothing_to_cut_leaves_the_file_in_place(tmp_path):
    writer = opened(tmp_path)
    write(writer, [10])
    writer.close()
    path = tmp_path / "tensorboard" / NAME
    before = path.stat().st_ino
    opened(tmp_path, 10).close()
    assert path.stat().st_ino == before


def test_a_fresh_run_starts_anew(tmp_path):
    for _ in range(2):
        writer = opened(tmp_path)
        writer.text("job", "a job")
        write(writer, [10])
        writer.close()
    assert scalars(tmp_path) == [(10, 2.5)]
    assert len(texts(tmp_path, "job")) == 1


def test_the_rest_of_a_killed_rewrite_is_removed(tmp_path):
    folder = tmp_path / "tensorboard"
    folder.mkdir()
    (folder / ".events.out.tfevents.0000000000.77.dreambooth").write_bytes(b"half")
    opened(tmp_path, 10).close()
    assert [path.name for path in folder.iterdir()] == [NAME]


def test_errors_reach_the_engine(tmp_path):
    writer = opened(tmp_path)
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.scalars(1, {"a": 1.0})


def test_grid_of_one_is_the_picture():
    assert grid([RED]).tobytes() == RED.tobytes()


def test_grid_fills_row_by_row():
    shades = [Image.new("L", (2, 3), 40 * (i + 1)).convert("RGB") for i in range(5)]
    sheet = np.asarray(grid(shades, background="black"))[::3, ::2, 0]
    assert sheet.tolist() == [[40, 80, 120], [160, 200, 0]]


def test_tensorboard_is_registered():
    assert registry().kinds("tracker")["tensorboard"] is TensorBoard
