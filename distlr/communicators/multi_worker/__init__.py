"""The workers of a `MultiWorkerMirroredStrategy`: the communicator and the gradients."""
