"""Which samples does a rank see? Its share, and the position in it."""
