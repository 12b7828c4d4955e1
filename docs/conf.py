"""Sphinx's settings for the site; docs/build_site.py prepares its source and runs it."""

project = "deeplab_jax"
author = "the deeplab_jax authors"
copyright = author
extensions = ["myst_parser"]
root_doc = "index"

# A heading's anchor is a code forge's, so that a page's links work there too.
myst_heading_anchors = 4
nitpicky = True

html_theme = "sphinx_book_theme"
html_title = "deeplab_jax"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_copy_source = False
html_show_sourcelink = False
html_last_updated_fmt = None
html_permalinks_icon = "#"
html_theme_options = {
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "use_source_button": False,
    "navigation_with_keys": False,
    "navbar_persistent": [],  # the sidebar has the search
}
highlight_language = "text"
