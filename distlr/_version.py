"""The version, in one place: the build, `distlr --version` and saved state all read it here."""

__all__ = ["__version__"]

__version__ = "0.1.0"
