"""What the slot's base promises, over an HTTP server on the loopback: python -m pytest."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from dreambooth import JobError
from dreambooth.testing import DataSourceConformance, lay_pictures

from remote_pictures.plugin import RemotePictures

pytest_plugins = ["dreambooth.testing.fixtures"]


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *what):
        pass


@pytest.fixture
def served(tmp_path):
    """Serve a folder on the loopback; yields the folder and its address."""
    folder = tmp_path / "served"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=folder))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()
    thread.join()


class TestRemotePictures(DataSourceConformance):
    """In memory: no server has to outlive the component."""

    def make(self, pictures):
        import fsspec

        system = fsspec.filesystem("memory")
        for path in pictures.iterdir():
            system.pipe_file(f"/dogs/{path.name}", path.read_bytes())
        return RemotePictures(url="memory://dogs", resolution=32)


def test_pictures_and_captions_come_over_http(served, trainer):
    folder, address = served
    lay_pictures(folder)
    (folder / "broken.png").write_bytes(b"no picture")
    source = RemotePictures(url=address, resolution=32)
    with trainer.context() as ctx:
        found = source.scan(ctx)
    assert [item.id for item in found.items] == ["0.png", "1.png", "2.png"]
    assert found.items[1].caption == "picture 1 of {identifier} {class_noun}"
    assert [bad.id for bad in found.rejected] == ["broken.png"]
    ran = trainer.run(data=source, prior="none", train={"steps": 2})
    assert len(ran.losses) == 2


def test_what_is_too_large_or_not_there_is_told(served, trainer):
    folder, address = served
    (folder / "large.png").write_bytes(bytes((1 << 20) + 1))
    with trainer.context() as ctx:
        with pytest.raises(JobError, match="larger than 1 MiB"):
            RemotePictures(url=address, max_mib=1).scan(ctx)
        with pytest.raises(JobError, match="has no pictures"):
            (folder / "large.png").unlink()
            RemotePictures(url=address).scan(ctx)
        with pytest.raises(JobError, match="cannot be read"):
            RemotePictures(url=f"{address}nowhere/").scan(ctx)


def test_a_folder_of_this_machine_has_another_kind():
    [problem] = RemotePictures(url="pictures/dog").check(None, None)
    assert "kind: folder" in problem.hint
