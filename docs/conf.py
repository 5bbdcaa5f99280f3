"""Sphinx settings of the site; `make docs` stages the notebooks and calls Sphinx with this folder as -c."""
import re
from pathlib import Path

home = Path(__file__).resolve().parent.parent
project = "posellm"
author = "posellm contributors"
copyright = "posellm contributors, MIT licence"
release = re.search(r'__version__\s*=\s*["\'](.+?)["\']', (home / "posellm" / "__init__.py").read_text(encoding="utf8"))[1]

extensions = ["myst_nb"]
nb_execution_mode = "off"                       # the figures are those saved in the notebooks
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]             # a symbol's signature is a third-level heading wherever it stands
exclude_patterns = ["_build", "jupyter_execute"]
nb_number_source_lines = False
nb_merge_streams = True
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"

html_theme = "furo"
html_title = f"posellm {release}"
html_show_sourcelink = False
html_copy_source = False
html_static_path = [str(home / "docs" / "static")]
html_css_files = ["site.css"]
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1446be", "color-brand-content": "#1446be"},
    "dark_css_variables": {"color-brand-primary": "#ffb200", "color-brand-content": "#ffc64d"},
}
