"""The range test: a search for the learning rate, and the curve that it gives."""
