"""What must be equal on all ranks? Broadcasts, digests, metrics, moving statistics."""
