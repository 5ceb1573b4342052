"""What must be equal on all ranks? Broadcasts, digests, metrics, moving statistics."""

import distlr._utils.keras_setup  # noqa: F401  (checks the installation first)
