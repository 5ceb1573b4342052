"""Helpers that belong to no room: files, checks of arguments, figures, the check of the installation."""
