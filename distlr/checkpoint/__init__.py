"""What survives a crash? The files, the state of a run, snapshots, and the signals before an end."""
