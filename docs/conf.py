"""How Sphinx builds the site: `make site`.

The source folder is the checkout itself, not docs/: Sphinx reads README.md, the notebooks and the gallery where they lie, so that
a link between two of them works in the site, on a code host and in an editor alike. `include_patterns` names what becomes a page.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

project = "MetAug Workbook"
author = "The MetAug Workbook authors"
language = "en"
extensions = ["myst_nb", "workbook_site"]

# --- pages
root_doc = "README"  # `workbook_site` adds the table of contents, docs/contents.md
include_patterns = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "LOG.md",
    "docs/*.md",
    "notebooks/[0-9][0-9]_*.ipynb",
    "figures/README.md",
    "benchmarks/README.md",
]
exclude_patterns = ["docs/contents.md", ".venv", ".git", "runs", "data", "site", "**/.ipynb_checkpoints"]

# --- markdown and notebooks
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_dmath_double_inline = True  # $$...$$ within a paragraph, as Jupyter shows it
myst_heading_anchors = 3
nb_execution_mode = "off"  # the outputs are those that are committed
nb_custom_formats = {".ipynb": "workbook_site.read_notebook"}
html_math_renderer = "mathml"

# --- look: everything lies in the site, nothing is fetched
html_theme = "furo"
html_title = project
html_static_path = [str(HERE / "_static")]
html_css_files = ["site.css"]
html_js_files = [("site.js", {"defer": "defer"})]
templates_path = [str(HERE / "_templates")]
html_additional_pages = {"index": "index.html"}
html_copy_source = False
html_show_search_summary = False  # an excerpt is fetched by a script, which file:// forbids
html_show_copyright = False
html_theme_options = {"top_of_page_buttons": []}
