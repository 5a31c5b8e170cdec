"""The site that `make docs` builds: Sphinx, MyST-Parser for Markdown, the furo theme, nothing from the network."""

project = "MMPKD sweep"
html_title = "MMPKD sweep"
extensions = ["myst_parser"]
myst_heading_anchors = 3  # so that pages can link to each other's headings, as on GitHub
html_theme = "furo"
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_static_path = ["static"]
html_css_files = ["site.css"]
