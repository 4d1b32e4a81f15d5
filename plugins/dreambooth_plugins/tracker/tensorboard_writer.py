"""Writes TensorBoard events, all lives of a run into one file."""

from __future__ import annotations

import time
from io import BytesIO
from typing import TYPE_CHECKING, Any

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.text.metadata import create_summary_metadata

from dreambooth.helpers.pictures import grid
from dreambooth.interfaces import TrackerWriter
from dreambooth_plugins.tracker.event_file import EventFile

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from PIL.Image import Image


class TensorBoardWriter(TrackerWriter):
    """Turns what the engine logs into summaries. `pictures` is `grid`, `each` or `none`.

    Scalars are float32, as TensorBoard keeps them; `metrics.jsonl` has them in full.
    """

    def __init__(self, folder: Path, resume_step: int, pictures: str) -> None:
        self._resume_step = resume_step
        self._pictures = pictures
        self._file = EventFile(folder, resume_step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write one event with all numbers of the step."""
        self._write(step, [Summary.Value(tag=k, simple_value=v) for k, v in values.items()])

    def images(
        self, step: int, name: str, images: Sequence[Image], captions: Sequence[str]
    ) -> None:
        """Write the pictures as PNG under `name` (a grid) or `name/0`, ... and their captions."""
        if self._pictures == "none" or not images:
            return
        if self._pictures == "grid":
            values = [_picture(name, grid(images, background="black"))]
        else:
            values = [_picture(f"{name}/{i}", image) for i, image in enumerate(images)]
        if captions:
            listed = "\n".join(f"{i}. {caption}" for i, caption in enumerate(captions, start=1))
            values.append(_text(f"{name}/captions", listed))
        self._write(step, values)

    def text(self, name: str, text: str) -> None:
        """Write a text as it stands (TensorBoard would read it as Markdown)."""
        self._write(self._resume_step, [_text(name, f"```\n{text}\n```")])

    def flush(self) -> None:
        """Bring the events to the disk."""
        self._file.sync()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, step: int, values: list[Any]) -> None:
        self._file.add(step, time.time(), Summary(value=values))


def _picture(tag: str, image: Image) -> Any:
    encoded = BytesIO()
    image.convert("RGB").save(encoded, "PNG")
    picture = Summary.Image(
        width=image.width,
        height=image.height,
        colorspace=3,
        encoded_image_string=encoded.getvalue(),
    )
    return Summary.Value(tag=tag, image=picture)


def _text(tag: str, text: str) -> Any:
    tensor = TensorProto(
        dtype=DT_STRING,
        string_val=[text.encode()],
        tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
    )
    metadata = create_summary_metadata(display_name=tag, description="")
    return Summary.Value(tag=tag, tensor=tensor, metadata=metadata)
