"""What plugins' methods must return: held by the door at every call (`component.door`)."""

from dreambooth.interfaces.answers import plain as _plain  # noqa: F401 - hold plugins to these
from dreambooth.interfaces.answers import tensors as _tensors  # noqa: F401
