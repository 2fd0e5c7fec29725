"""The directive `verbs`: the reference of the command line, made from its commands and what their options say of themselves."""

from __future__ import annotations

from typing import Any

import click
from docutils import nodes
from docutils.parsers.rst import Directive


class Verbs(Directive):
    """A section for every verb: what it does, how it is called, its arguments and options."""

    def run(self) -> list[nodes.Node]:
        """Return the sections."""
        from agmc_onnx.cli.program import VERBS, verb_named

        self.state.document.settings.env.note_reread()  # the commands change without this page
        return [_section(name, verb_named(name)) for name in VERBS]


def _section(name: str, command: click.Command) -> nodes.section:
    context = click.Context(command, info_name=f"agmc-onnx {name}")
    section = nodes.section(ids=[f"verb-{name}"], names=[name])
    section += nodes.title(text=name)
    section += nodes.paragraph(text=command.help or "")
    usage = " ".join([f"agmc-onnx {name}", *command.collect_usage_pieces(context)])
    section += nodes.literal_block(usage, usage, language="text")
    if command.epilog:
        section += nodes.paragraph(text=command.epilog)
    panels: dict[str, list[click.Parameter]] = {panel.name: [] for panel in command.panels}  # type: ignore[attr-defined]
    for one in command.get_params(context):
        is_argument = isinstance(one, click.Argument)
        panels.setdefault("Arguments" if is_argument else getattr(one, "panel", "Options"), []).append(one)
    for panel, rows in panels.items():
        if rows:
            section += nodes.rubric(text=panel)
            section += nodes.definition_list("", *(_row(one) for one in rows))
    return section


def _row(one: click.Parameter) -> nodes.definition_list_item:
    if isinstance(one, click.Argument):
        term = one.metavar or str(one.name)
    else:
        is_switch = getattr(one, "is_flag", False) or one.metavar is None
        term = ", ".join(reversed(one.opts)) + ("" if is_switch else f" {one.metavar}")
    known = getattr(one, "known", None)
    more = known.says.more if known else ""
    text = f"{getattr(one, 'help', None) or ''}{'. ' + more if more else ''}" or " "
    return nodes.definition_list_item(
        "", nodes.term("", "", nodes.literal(text=term)), nodes.definition("", nodes.paragraph(text=text))
    )


def setup(app: Any) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("verbs", Verbs)
    return {"parallel_read_safe": True}
