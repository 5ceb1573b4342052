"""A page and a picture of runs, from what their directories hold: rates, metrics, decisions, configuration.

The page is one file of HTML and SVG, with neither scripts nor anything to load. The files of a run are
not trusted: values may be missing or of any type, and text is shown as text.
"""

from distlr.tools.report.page import html_page, write_report
from distlr.tools.report.picture import draw

__all__ = ["draw", "html_page", "write_report"]
