"""Where am I running? Backend selection, launchers, and where local workers meet. No TensorFlow, no communicator."""
