"Equations leave Sphinx as LaTeX; equations.mjs sets all of them at once, so that a page shows them without JavaScript."

import html

from docutils import nodes


def visit_inline(self, node):
    "An equation in a line."
    self.body.append(f'<span class="math-source">{html.escape(node.astext())}</span>')
    raise nodes.SkipNode


def visit_block(self, node):
    "An equation of its own."
    self.body.append(f'<div class="math-source">{html.escape(node.astext())}</div>\n')
    raise nodes.SkipNode


def setup(app):
    "Register as a renderer of equations for Sphinx."
    app.add_html_math_renderer("katex", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
