"""Sphinx settings of the site; `make docs` stages the notebooks and calls Sphinx with this folder as -c."""
import html
import re
from functools import lru_cache
from pathlib import Path

from docutils.nodes import SkipNode

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


# Formulas become SVG by matplotlib, so that the site shows them without asking a server for MathJax.
html_math_renderer = "mathtext"


@lru_cache(maxsize=None)
def formula(latex, display):
    """Inline SVG of a formula in the colour and size of the text; what matplotlib cannot set stays readable as LaTeX."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath
    text = " ".join(latex.replace(r"\dfrac", r"\frac").split())
    try: path = TextPath((0, 0), f"${text}$", size=10, prop=FontProperties(math_fontfamily="stix"))
    except Exception: return f'<code class="docutils literal">{html.escape(latex)}</code>'
    if not len(path.vertices): return ""
    (x0, y0), (x1, y1) = path.get_extents().get_points()
    letters = {1: "M", 2: "L", 3: "Q", 4: "C", 79: "Z"}
    d = "".join(letters[int(code)] + ("" if code == 79 else " ".join(f"{v:.2f}" for v in vs)) for vs, code in path.iter_segments(simplify=False))
    em = 0.115 if display else 0.105
    return (f'<svg class="formula" role="img" aria-label="{html.escape(latex)}" viewBox="{x0:.2f} {-y1:.2f} {x1 - x0:.2f} {y1 - y0:.2f}" '
            f'style="width:{(x1 - x0) * em:.2f}em;height:{(y1 - y0) * em:.2f}em;vertical-align:{y0 * em:.2f}em"><path transform="scale(1,-1)" d="{d}"/></svg>')


def inline_formula(self, node):
    self.body.append(formula(node.astext(), False))
    raise SkipNode


def display_formula(self, node):
    self.body.append(f'<div class="formula-block">{formula(node.astext(), True)}</div>')
    raise SkipNode


def setup(app):
    app.add_html_math_renderer("mathtext", (inline_formula, None), (display_formula, None))
