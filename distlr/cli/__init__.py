"""The `distlr` command. One module a subcommand, each with `register(subparsers)` and `run(args) -> int`.

Nothing here imports TensorFlow or Keras at module level, so `distlr --help` answers at once.
"""

__all__: list[str] = []
