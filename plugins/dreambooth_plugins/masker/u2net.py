"""Subject masks by U2-Net."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from dreambooth import Masker, Problem
from dreambooth.component import JobPath
from dreambooth_plugins.common.extras import missing

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    from PIL.Image import Image

    from dreambooth import Job
    from dreambooth.interfaces import ModelInfo


class U2Net(Masker):
    """What stands out in a picture, as U2-Net sees it (Qin et al. 2020, arXiv:2005.09007).

    It knows nothing of the subject: where something else stands out too, it is in the mask. Needs
    the extra `masks` (onnxruntime).
    """

    kind: Literal["u2net"] = "u2net"
    model: JobPath
    """The network as an ONNX file (`u2net.onnx`, `u2netp.onnx`): takes [1, 3, 320, 320] and
    answers with [1, 1, 320, 320] first."""

    def check(self, job: Job | None, info: ModelInfo | None) -> Iterable[Problem]:
        """Report a file or library that is not there."""
        if not self.model.is_file():
            yield Problem(("masks", "model"), f"there is no file {self.model}", "name u2net.onnx")
        yield from missing("onnxruntime", "masks", ("masks", "kind"))

    def masks(
        self, images: Sequence[Image], device: str
    ) -> Sequence[np.ndarray[Any, np.dtype[np.float32]]]:
        """Return a mask a picture, at its size; the network runs on the CPU."""
        from dreambooth_plugins.masker.u2net_masks import opened, subject_mask

        session = opened(self.model)
        return [subject_mask(session, image) for image in images]
