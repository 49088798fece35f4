"Sphinx settings of the site; build.py stages the sources and calls it."

import sys
from pathlib import Path

project = "colanb"
author = "The colanb authors"
copyright = "2026 The colanb authors"
html_title = "colanb"

sys.path.insert(0, str(Path(__file__).parent))
extensions = ["myst_nb", "equations"]
myst_enable_extensions = ["dollarmath", "amsmath", "attrs_block", "colon_fence", "deflist"]
myst_heading_anchors = 3
myst_url_schemes = ["http", "https", "mailto"]
nb_execution_mode = "off"              # notebooks come with what they printed
nb_render_markdown_format = "myst"     # tables and findings that a notebook displays have links and equations
nb_merge_streams = True
suppress_warnings = ["toc.not_included", "mystnb.mime_priority", "misc.highlighting_failure", "myst.header"]

html_math_renderer = "katex"

html_theme = "furo"
html_static_path = ["_static"]
html_favicon = "_static/favicon.svg"
html_css_files = ["katex/katex.min.css", "site.css"]
html_js_files = [("widgets/main.js", {"type": "module"})]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": False, "top_of_page_buttons": []}
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"
