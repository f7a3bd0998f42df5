"""How Sphinx makes the site: ``make docs`` writes static pages into docs/_build, search included.

The sources are the Markdown pages that GitHub shows, read from the root of the repository so that
their links to one another hold in both.
"""

from docutils import nodes
from latex2mathml.converter import convert

from longarc.version import __version__

project = "longarc"
author = "The longarc authors"
copyright = author
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = [
    "docs/*.md", "docs/*.rst", "docs/studies/index.md", "README.md", "README.zh-CN.md",
    "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md",
]  # fmt: skip
exclude_patterns = [".*", "src", "tests", "runs", "dist", "build", "docs/_build"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}

myst_heading_anchors = 4
# Pages have no blank line in some lists, and code blocks of formats that no lexer knows.
suppress_warnings = ["misc.highlighting_failure"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_math_renderer = "mathml"
html_theme = "furo"
html_title = "longarc"
html_show_sourcelink = False
html_copy_source = False
html_extra_path = ["_extra"]
html_static_path = ["_static"]
html_css_files = ["gallery.css"]

CONTENTS = """

```{toctree}
:hidden:
:caption: Guide

tour
choosing
training
explanations
pretraining
positions
attention
residual-attention
recurrent
learning-rate
compare
gradient-flow
run-folder
```

```{toctree}
:hidden:
:caption: Parts

losses
loss-tables
regularizers
self-supervised
dynamics
extending
api
```

```{toctree}
:hidden:
:caption: Measured

studies
studies/index
../benchmarks/README
```

```{toctree}
:hidden:
:caption: The project

README <../README>
中文 <../README.zh-CN>
../CONTRIBUTING
../CHANGELOG
```
"""
"""The site's menu. It is no part of index.md, where GitHub would show it as code."""


def add_contents(app, docname, source):
    """Append the menu to the first page."""
    if docname == root_doc:
        source[0] += CONTENTS


def mathml(display):
    """Write formulas as MathML, which browsers draw by themselves: no script from elsewhere."""

    def visit(writer, node):
        writer.body.append(convert(node.astext(), display=display))
        raise nodes.SkipNode

    return visit, None


def setup(app):
    """Called by Sphinx."""
    app.connect("source-read", add_contents)
    app.add_html_math_renderer("mathml", mathml("inline"), mathml("block"))
