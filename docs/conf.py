"""Sphinx settings: `sphinx-build -W -b html docs docs/_build`."""

import re
from importlib.metadata import version as _version
from textwrap import indent

project = "softxp"
author = copyright = "the softxp authors"
version = release = _version("softxp")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
default_role = "code"
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"softxp {release}"

add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"

# --- docstrings -------------------------------------------------------------------------------------------------------
# Ours stand under numpy's headings, but an entry is `name : sentences`, never `name : type`, and what comes back is a
# paragraph. sphinx.ext.napoleon would set both as types, so the headings become fields here.

_FIELDS = {"Parameters": "param", "Raises": "raises", "Attributes": "ivar"}
_ENTRY = re.compile(r"(\*{0,2}\w+(?:, \w+)*) : ")


def _docstring(app, what, name, obj, options, lines):
    text = "\n".join(lines)
    head, *sections = re.split(r"^(\w+)\n-+\n", text, flags=re.MULTILINE)
    # the indented lines below the summary are an equation, and stand as they are
    out = [re.sub(r"\n\n(?=    )", "\n\n::\n\n", head, count=1)]
    for title, body in zip(sections[::2], sections[1::2], strict=True):
        if title in _FIELDS:
            out += _fields(_FIELDS[title], body.strip())
        elif title == "Returns":
            out.append(f":returns: {_plain(' '.join(body.split()))}")
        else:
            out += ["", f".. rubric:: {title}", "", body if title == "Examples" else _plain(body)]
    lines[:] = [*"\n".join(out).splitlines(), ""]


def _fields(kind, body):
    for block in re.split(r"\n(?=\S)", body):
        line, *below = block.splitlines()
        if any(each.startswith(" " * 8) for each in below):  # the entry is a list, whose items go on at eight spaces
            items = " ".join("\n* " + each[4:] if each[4] != " " else each.strip() for each in below)
            below = ["", *items.splitlines()]
            yield from _entry(kind, line, "\n".join(below))
            continue
        # two entries may share a line: "a : ...; b : ..."
        joined = " ".join([line, *(each.strip() for each in below)])
        for each in re.split(rf"(?<=[.;]) (?={_ENTRY.pattern})", joined):
            if _ENTRY.match(each):
                yield from _entry(kind, each.rstrip(";"), "")


def _entry(kind, line, below):
    name, text = line[: _ENTRY.match(line).end() - 3], line[_ENTRY.match(line).end() :]
    yield f":{kind} {_plain(name)}: {_plain(text)}"
    if below:
        yield indent(_plain(below).replace("\n\\*", "\n*"), "    ")


def _plain(text):
    """No substitutions, no emphasis."""
    return text.replace("|", "\\|").replace("*", "\\*")


def setup(app):
    app.connect("autodoc-process-docstring", _docstring)
