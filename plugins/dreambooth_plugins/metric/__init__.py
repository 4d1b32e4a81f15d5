"""Default metrics."""

from __future__ import annotations

from dreambooth import Metric, hookimpl
from dreambooth_plugins.metric.diversity import Diversity


@hookimpl
def register_metrics() -> list[type[Metric]]:
    """Bring `diversity`."""
    return [Diversity]
