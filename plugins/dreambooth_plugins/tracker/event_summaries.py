"""What TensorBoard's own messages look like for pictures, texts, histograms, hyperparameters."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

from google.protobuf.struct_pb2 import Value  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.hparams import metadata as hparams
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionStartInfo
from tensorboard.plugins.text.metadata import create_summary_metadata

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from PIL.Image import Image

    from dreambooth.interfaces import Histogram


def picture(tag: str, image: Image) -> Any:
    """Return a picture as PNG."""
    encoded = BytesIO()
    image.convert("RGB").save(encoded, "PNG")
    made = Summary.Image(
        width=image.width,
        height=image.height,
        colorspace=3,
        encoded_image_string=encoded.getvalue(),
    )
    return Summary.Value(tag=tag, image=made)


def text(tag: str, content: str) -> Any:
    """Return a text for the text dashboard, which reads it as Markdown."""
    tensor = TensorProto(
        dtype=DT_STRING,
        string_val=[content.encode()],
        tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
    )
    metadata = create_summary_metadata(display_name=tag, description="")
    return Summary.Value(tag=tag, tensor=tensor, metadata=metadata)


def histogram(tag: str, found: Histogram) -> Any:
    """Return a histogram; TensorBoard counts each bucket up to its right edge."""
    made = HistogramProto(
        min=found.edges[0],
        max=found.edges[-1],
        num=sum(found.counts),
        sum=found.total,
        sum_squares=found.squares,
        bucket_limit=found.edges[1:],
        bucket=found.counts,
    )
    return Summary.Value(tag=tag, histo=made)


def hyperparameters(group: str, job: Mapping[str, Any]) -> Any:
    """Return the options of a resolved job for the dashboard HPARAMS, one row a run."""
    start = SessionStartInfo(group_name=group, start_time_secs=0.0)
    for name, value in flat(job):
        start.hparams[name].CopyFrom(_value(value))
    content = HParamsPluginData(session_start_info=start, version=hparams.PLUGIN_DATA_VERSION)
    data = SummaryMetadata.PluginData(
        plugin_name=hparams.PLUGIN_NAME, content=content.SerializeToString()
    )
    return Summary.Value(
        tag=hparams.SESSION_START_INFO_TAG,
        metadata=SummaryMetadata(plugin_data=data),
        tensor=hparams.NULL_TENSOR,
    )


def flat(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield options by dotted name: `train.steps`; of lists their text, of null nothing."""
    for name, value in options.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", value


def _value(value: Any) -> Any:
    if isinstance(value, bool):
        return Value(bool_value=value)
    if isinstance(value, int | float):
        return Value(number_value=float(value))
    return Value(string_value=value if isinstance(value, str) else repr(value))
