"""For your own tests: ranks as threads, and the rate at any point of a run without training.

In pytest the fixture `distlr_ranks` is there by itself once distlr is installed; see `distlr.testing.plugin`.
Importing this module imports neither TensorFlow nor pytest.
"""

from distlr.communicators import run_ranks
from distlr.testing.rates import assert_rates

__all__ = ["assert_rates", "run_ranks"]
