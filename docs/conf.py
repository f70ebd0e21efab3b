"""Sphinx configuration. Pages made from the code come from `m890.sim.docs`, where it is there."""

import importlib
import importlib.metadata
import importlib.util
import logging
from pathlib import Path

project = "m890"
author = "the m890 authors"
copyright = "the m890 authors, Apache-2.0"
release = version = importlib.metadata.version("m890")

extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

source_suffix = {".md": "markdown"}
root_doc = "index"
exclude_patterns = ["_build", "results", "**/README.md"]
nitpicky = True

html_theme = "furo"
html_title = "m890"
html_show_sphinx = False

# `m890.sim.docs.generate(folder)` writes Markdown pages and pictures into the git-ignored folder.
generated = Path(__file__).parent / "_generated"
if importlib.util.find_spec("m890.sim.docs") is not None:
    generated.mkdir(exist_ok=True)
    importlib.import_module("m890.sim.docs").generate(generated)

# The index sorts pages by patterns, some of which match nothing yet; Sphinx warns without a type.
logging.getLogger("sphinx.sphinx.directives.other").addFilter(
    lambda record: "toctree glob pattern" not in str(record.msg)
)
