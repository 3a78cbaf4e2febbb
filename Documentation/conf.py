"""Sphinx: reStructuredText to HTML and PDF."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "precopy"
author = "The precopy authors"
copyright = "The precopy authors; Apache-2.0"
extensions = ["conformance_results", "conformance_tables", "states_diagram"]
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {"description": "Live migration of VFIO devices", "fixed_sidebar": True}

try:
    import rst2pdf  # noqa: F401
except ImportError:
    pass
else:
    extensions.append("rst2pdf.pdfbuilder")
    pdf_documents = [("index", "precopy", "precopy", author)]
