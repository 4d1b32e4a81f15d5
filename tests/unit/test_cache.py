"""The store: keyed by content, whole chunks, same bits wherever a build was cut."""

from __future__ import annotations

import pytest
import torch

from dreambooth.engine.cache import ChunkStore, content_key
from dreambooth.engine.random import generator
from dreambooth.engine.reporting import Quiet
from dreambooth.errors import RunError
from dreambooth.files import cache_root, store_trouble, write_json


class Counting(Quiet):
    def __init__(self):
        self.warnings = []

    def warn(self, message):
        self.warnings.append(message)


@pytest.fixture
def built():
    return []


@pytest.fixture
def open_store(tmp_path, built):
    def build(indices):
        built.append(list(indices))
        rng = generator(0, "store", *indices)  # bits depend on the chunk's composition
        return {"x": torch.randn(len(indices), 3, generator=rng)}

    def make(key=None, chunk=4, total=None, reporter=None, build=build):
        return ChunkStore("test", key or {}, chunk, build, reporter or Quiet(), total, tmp_path)

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


def test_every_part_of_the_key_and_the_chunk_size_name_another_entry(open_store):
    keys = {open_store(k, c, t).key for k, c, t in [({}, 4, None), ({"a": 1}, 4, None)]}
    keys |= {open_store({}, 5, None).key, open_store({}, 4, 8).key}
    assert len(keys) == 4


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
