"""The directive `verbs`: the reference of the command line, made from its parsers."""

from __future__ import annotations

import argparse
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive


class Verbs(Directive):
    """A section for every verb: what it does, how it is called, its arguments and options."""

    def run(self) -> list[nodes.Node]:
        """Return the sections."""
        from agmc_onnx.cli import parser_of_all

        self.state.document.settings.env.note_reread()  # the parsers change without this page
        _, verbs = parser_of_all()
        return [_section(name, parser) for name, parser in verbs.items()]


def _section(name: str, parser: argparse.ArgumentParser) -> nodes.section:
    section = nodes.section(ids=[f"verb-{name}"], names=[name])
    section += nodes.title(text=name)
    section += nodes.paragraph(text=parser.description or "")
    parser.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=86)
    usage = parser.format_usage().removeprefix("usage: ").rstrip()
    section += nodes.literal_block(usage, usage, language="text")
    for group in parser._action_groups:
        rows = [action for action in group._group_actions if action.help != argparse.SUPPRESS]
        if not rows:
            continue
        section += nodes.rubric(text=group.title or "")
        listed = nodes.definition_list()
        for action in rows:
            term = nodes.term("", "", nodes.literal(text=_names(action)))
            text = (parser._get_formatter()._expand_help(action) if action.help else "") or " "
            listed += nodes.definition_list_item("", term, nodes.definition("", nodes.paragraph(text=text)))
        section += listed
    return section


def _names(action: argparse.Action) -> str:
    value = action.metavar if isinstance(action.metavar, str) else action.dest
    if not action.option_strings:
        return value
    return ", ".join(action.option_strings) + ("" if action.nargs == 0 else f" {value}")


def setup(app: Any) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("verbs", Verbs)
    return {"parallel_read_safe": True}
