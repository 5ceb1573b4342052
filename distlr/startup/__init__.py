"""Where am I running? Backend selection, launchers, the connection of workers. No TensorFlow, no communicator."""
