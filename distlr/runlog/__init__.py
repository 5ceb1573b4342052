"""What was decided? The directory of a run, its journal, and requests by hand."""
