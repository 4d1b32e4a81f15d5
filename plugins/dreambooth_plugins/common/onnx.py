"""Networks in ONNX files, through onnxruntime, where it is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dreambooth.errors import RunError
from dreambooth_plugins.common.extras import importing

if TYPE_CHECKING:
    from pathlib import Path


def open_session(path: Path, extra: str, asked_by: str) -> Any:
    """Return an onnxruntime session on the CPU, one thread deterministic as another.

    `RunError` where onnxruntime is missing (`extra` brings it) or the file cannot be read.
    """
    with importing(extra, asked_by):
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # its warnings are about graphs that nobody here can change
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of its own kinds, all below one that is not public
        reason = " ".join(str(error).split())[:200]
        raise RunError(f"{path} is no ONNX file that can be read: {reason}") from error
