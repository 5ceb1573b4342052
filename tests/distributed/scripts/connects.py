"""Connects with the other ranks, waiting five seconds for them, and ends."""

import distlr

print("connected", distlr.init(timeout=5).size)
