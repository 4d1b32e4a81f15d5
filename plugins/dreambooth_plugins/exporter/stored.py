"""What formats of weights share: the precision they are stored in."""

from __future__ import annotations

from dreambooth.interfaces import Exporter
from dreambooth_plugins.common.dtypes import Dtype


class Stored(Exporter):
    """A format whose numbers may be halved. No kind of its own."""

    dtype: Dtype = "fp32"
    """Precision of the stored weights; fp16 and bf16 halve the size."""
