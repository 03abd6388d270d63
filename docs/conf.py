"""How Sphinx builds the site: ``make docs``."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import django
from django.conf import settings
from docutils import nodes

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
settings.configure(
    INSTALLED_APPS=[
        "django.contrib.admin",
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.messages",
        "run_abort",
    ],
    RUN_ABORT={"LISTEN": False},
    USE_I18N=False,
)
django.setup()

import run_abort  # noqa: E402

if TYPE_CHECKING:
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

project = "django-run-abort"
author = "The django-run-abort developers"
copyright = author  # noqa: A001
release = version = run_abort.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["build"]
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_type_aliases = {"Escalation": "Escalation", "RunID": "RunID"}
add_module_names = False
toc_object_entries_show_parents = "hide"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
# Public names of this app have to lead somewhere; others, and type variables, do not.
nitpick_ignore_regex = [("py:.*", r"(?!run_abort\b).*|run_abort\._.*|.*\.(_\w+|F|View)")]

html_theme = "furo"
pygments_dark_style = "a11y-high-contrast-dark"
html_title = project
html_baseurl = "https://django-run-abort.readthedocs.io/en/latest/"
html_copy_source = False
html_show_sphinx = False
html_domain_indices = False
html_theme_options = {
    "source_repository": "https://github.com/django-run-abort/django-run-abort/",
    "source_branch": "main",
    "source_directory": "docs/",
}


def public_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Node
) -> nodes.Node | None:
    """Resolve a name in a private module to where the reference documents it."""
    if node.get("refdomain") != "py":
        return None
    domain = env.domains.python_domain
    name = node["reftarget"].rpartition(".")[2]
    found = [each for each in domain.objects if each.rpartition(".")[2] == name]
    if len(found) != 1:
        return None
    return domain.resolve_any_xref(env, node["refdoc"], app.builder, found[0], node, content)[0][1]


def plain_signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str, returns: str
) -> tuple[str, str] | None:
    """Show the value of a number that is a default, and the name of an alias, without its class."""
    if not signature:
        return None
    values = vars(sys.modules.get(getattr(obj, "__module__", ""), sys))

    def value(match: re.Match[str]) -> str:
        found = values.get(match[1])
        return f"= {found}" if isinstance(found, (float, int)) else match[0]

    signature = re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", signature)
    return re.sub(r"= ([A-Z_]+)\b", value, signature), returns


def pages(env: BuildEnvironment, parent: str) -> Iterator[str]:
    """Every page, in the order of the tables of contents."""
    for child in env.toctree_includes.get(parent, ()):
        yield child
        yield from pages(env, child)


def write_index_for_models(app: Sphinx, exception: Exception | None) -> None:
    """Write ``llms.txt``: a link to each page, with its first sentence."""
    if exception is not None or app.builder.name != "html":
        return
    lines = [f"# {project}", "", f"> {first_sentence(app.env, 'index')}", ""]
    lines += [
        f"- [{app.env.titles[page].astext()}]({html_baseurl}{page}.html): "
        f"{first_sentence(app.env, page)}"
        for page in pages(app.env, "index")
    ]
    Path(app.outdir, "llms.txt").write_text("\n".join(lines) + "\n")


def first_sentence(env: BuildEnvironment, page: str) -> str:
    """The first sentence of the first paragraph."""
    paragraph = next(iter(env.get_doctree(page).findall(nodes.paragraph)), None)
    text = "" if paragraph is None else " ".join(paragraph.astext().split())
    return text.partition(". ")[0].rstrip(".:") + "."


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-signature", plain_signature)
    app.connect("missing-reference", public_name)
    app.connect("build-finished", write_index_for_models)
