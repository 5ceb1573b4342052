"""Horovod's ranks: the communicator, the gradients, and how a rank takes part in updates while it waits."""
