"""Ways to keep the class: generated class images, the user's own, mirrored rows, or none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreambooth import hookimpl
from dreambooth_plugins.prior.folder import FolderPrior
from dreambooth_plugins.prior.generated import Generated
from dreambooth_plugins.prior.mirror import Mirror
from dreambooth_plugins.prior.none import NonePrior

if TYPE_CHECKING:
    from dreambooth.interfaces import Prior


@hookimpl
def register_priors() -> list[type[Prior]]:
    """Return the default priors."""
    return [Generated, FolderPrior, Mirror, NonePrior]
