"""The store: keyed by content, whole chunks, same bits wherever a build was cut."""

from __future__ import annotations

import shutil

import pytest
import torch

from dreambooth.engine.cache.store import ChunkStore, content_key
from dreambooth.engine.reporting import Quiet
from dreambooth.errors import RunError
from dreambooth.files import cache_root, store_trouble, write_json
from dreambooth.helpers.random import generator


class Counting(Quiet):
    def __init__(self):
        self.warnings, self.said = [], []

    def warn(self, message):
        self.warnings.append(message)

    def info(self, message):
        self.said.append(message)


@pytest.fixture
def built():
    return []


@pytest.fixture
def open_store(tmp_path, built):
    def build(indices):
        built.append(list(indices))
        rng = generator(0, "store", *indices)  # bits depend on the chunk's composition
        return {"x": torch.randn(len(indices), 3, generator=rng)}

    def make(key=None, chunk=4, total=None, reporter=None, build=build, **more):
        reporter = reporter or Quiet()
        return ChunkStore("test", key or {}, chunk, build, reporter, total, tmp_path, **more)

    return make


def test_chunks_have_a_fixed_composition_and_are_built_once(open_store, built):
    store = open_store()
    store.ensure(6, "x")
    assert built == [[0, 1, 2, 3], [4, 5, 6, 7]]
    open_store().ensure(6, "x")
    assert len(built) == 2


def test_a_total_cuts_the_last_chunk_short(open_store, built):
    store = open_store(total=6)
    store.ensure(6, "x")
    assert built == [[0, 1, 2, 3], [4, 5]]
    assert store.present(6) == 6


def test_an_interrupted_build_gives_the_same_bits(open_store, tmp_path, built):
    straight = open_store()
    straight.ensure(8, "x")
    rows = [straight.row(i)["x"] for i in range(8)]
    sorted(straight.folder.glob("*.safetensors"))[1].unlink()
    again = open_store()
    assert again.present(8) == 4
    again.ensure(8, "x")
    assert all(torch.equal(rows[i], again.row(i)["x"]) for i in range(8))


def test_every_part_of_the_key_names_another_entry(open_store):
    keys = {open_store(k, 4, t).key for k, t in [({}, None), ({"a": 1}, None), ({}, 8)]}
    assert len({key.rsplit("-", 1)[0] for key in keys}) == 3


HERE = {"threads": 2, "device": "cpu", "precision": "fp32"}


def test_an_entry_is_finished_as_it_was_begun(open_store, built, monkeypatch):
    used = []
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    begun = open_store(chunk=2, made={**HERE, "threads": 7})
    begun.ensure(2, "x")
    reporter = Counting()
    store = open_store(chunk=4, made=HERE, reporter=reporter)
    store.ensure(6, "x")
    assert store.key == begun.key
    assert built == [[0, 1], [2, 3], [4, 5]]
    assert used[::2] == [7, 7, 7]
    [said] = reporter.said
    assert "2 rows at once (here 4), 7 threads (here 2)" in said


@pytest.mark.parametrize("other", [{"device": "an H100"}, {"precision": "bf16"}, {"torch": "9.0"}])
def test_what_cannot_be_finished_as_it_was_begun_is_begun_anew(open_store, built, other):
    begun = open_store(made={**HERE, **other})
    begun.ensure(4, "x")
    store = open_store(made=HERE)
    assert store.present(4) == 4  # there are enough: they are used
    larger = open_store(made=HERE)
    larger.ensure(8, "x")
    assert larger.key != begun.key == store.key
    assert built == [[0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7]]


def test_the_entry_made_as_here_is_preferred(open_store):
    own, other = open_store(made=HERE), open_store(made={**HERE, "precision": "bf16"})
    own.ensure(4, "x")
    other.ensure(8, "x")  # begun beside it: it cannot finish the first
    assert other.key != own.key
    assert open_store(made=HERE).present(8) == 4


def test_a_run_goes_on_with_the_bits_it_began_with(open_store):
    first = open_store(made=HERE)
    first.ensure(6, "x")
    pins = {first.key: first.pin()}
    reporter = Counting()
    open_store(made={**HERE, "threads": 1}, chunk=2, pins=pins, reporter=reporter).ensure(6, "x")
    shutil.rmtree(first.folder)  # gone: made again as it was
    open_store(made={**HERE, "threads": 1}, chunk=2, pins=pins, reporter=reporter).ensure(6, "x")
    assert not reporter.said + reporter.warnings


def test_a_run_refuses_other_bits_than_it_began_with(open_store, tmp_path):
    first = open_store(made=HERE)
    first.ensure(6, "x")
    pins = {first.key: first.pin()}
    shutil.rmtree(first.folder)
    other = open_store(made=HERE, build=lambda indices: {"x": torch.ones(len(indices), 3)})
    other.ensure(6, "x")  # whole, with a digest of its own
    with pytest.raises(RunError, match="not the one this run began with") as refused:
        open_store(made=HERE, pins=pins).ensure(6, "x")
    assert str(first.folder) in refused.value.hint + str(refused.value)


def test_bits_that_cannot_be_made_here_again_are_told(open_store):
    first = open_store(made={**HERE, "cpu": "AVX512"})
    first.ensure(4, "x")
    pins = {first.key: first.pin()}
    shutil.rmtree(first.folder)
    reporter = Counting()
    store = open_store(made={**HERE, "cpu": "AVX2"}, pins=pins, reporter=reporter)
    store.ensure(4, "x")
    assert store.key != first.key
    assert "CPU capability AVX512 (here AVX2)" in reporter.warnings[0]


@pytest.mark.parametrize("record", ["", "[]", '{"batch": 0}', '{"batch": "4"}'])
def test_an_entry_without_a_record_is_left_alone(open_store, built, record):
    spoilt = open_store(made=HERE)
    spoilt.ensure(4, "x")
    (spoilt.folder / "made.json").write_text(record)
    other = open_store(chunk=2, made=HERE)
    other.ensure(4, "x")
    assert other.key != spoilt.key
    assert built[1:] == [[0, 1], [2, 3]]


def test_names_in_a_manifest_lead_nowhere_else(open_store):
    store = open_store(made=HERE)
    stem = store.key.rsplit("-", 1)[0]
    pin = {"made": {"batch": 1}, "rows": 0, "digest": ""}
    for name in (f"{stem}-/../../x", f"{stem}-..", "/etc/passwd", "test/other-1234"):
        assert open_store(made=HERE, pins={name: pin}).key == store.key


def test_key_order_does_not_matter():
    assert content_key({"a": 1, "b": [2]}) == content_key({"b": [2], "a": 1})


def test_a_damaged_chunk_is_named_and_built_again(open_store):
    store = open_store()
    good = store.row(1)["x"].clone()
    file = store.folder / "chunk-000000.safetensors"
    file.write_bytes(file.read_bytes()[:20])
    reporter = Counting()
    assert torch.equal(open_store(reporter=reporter).row(1)["x"], good)
    assert "damaged" in reporter.warnings[0]
    assert file.name in reporter.warnings[0]


def test_values_that_are_not_finite_are_refused(open_store):
    def build(indices):
        return {"x": torch.full((len(indices), 2), float("nan"))}

    store = open_store(build=build)
    with pytest.raises(RunError, match="not finite"):
        store.ensure(1, "x")
    assert store.present(1) == 0


def test_a_row_beyond_what_was_announced_is_built_when_asked_for(open_store, built):
    store = open_store()
    store.row(9)
    assert built == [[8, 9, 10, 11]]
    store.forget(12)
    store.row(9)
    assert len(built) == 1


def test_the_store_lies_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("DREAMBOOTH_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.delenv("DREAMBOOTH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    assert cache_root() == tmp_path / "c/dreambooth"


@pytest.fixture
def usual(monkeypatch, tmp_path):
    """The store at its usual place, which is not there yet."""
    monkeypatch.delenv("DREAMBOOTH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    return tmp_path / "c/dreambooth"


def mode(path):
    return path.stat().st_mode & 0o777


def test_the_store_is_made_for_its_user_alone_and_stays_so(usual):
    assert store_trouble() == ""
    write_json(usual / "entry/key.json", {})
    assert mode(usual) == 0o700
    assert mode(usual.parent) != 0o700
    usual.chmod(0o755)  # as earlier versions made it
    assert store_trouble() == ""
    assert mode(usual) == 0o700


@pytest.mark.parametrize(
    ("bits", "said"), [(0o700, ""), (0o755, "can read"), (0o770, "can change"), (0o702, "change")]
)
def test_a_named_store_that_others_reach_is_told_and_left(monkeypatch, tmp_path, bits, said):
    monkeypatch.setenv("DREAMBOOTH_CACHE", str(tmp_path))
    tmp_path.chmod(bits)
    assert said in store_trouble()
    assert bool(store_trouble()) == bool(said)
    assert mode(tmp_path) == bits


def test_a_store_of_somebody_else_is_told(usual, monkeypatch):
    usual.mkdir(parents=True)
    monkeypatch.setattr("os.geteuid", lambda: usual.stat().st_uid + 1)
    assert "belongs to another user" in store_trouble()
