"""Command line and benches, as the programs themselves describe them."""

from pathlib import Path
from typing import Any

import typer.main

from m890.sim.bench import registry
from m890.sim.cli import app
from m890.sim.docs.markdown import code, page, table


def write(folder: Path) -> None:
    parts = [
        "# Command line",
        "Made from the program: `m890 COMMAND --help` says the same. Wrong input ends in one "
        "sentence and exit code 2.",
        table(("command", "what it does"),
              [(f"[`m890 {n}`](#m890-{n})", app.COMMANDS[n]) for n in app.available()]),
    ]  # fmt: skip
    for name in app.available():
        parts += _command(name)
    (folder / "command-line.md").write_text(page(*parts), "utf-8")
    _benches(folder)


def _command(name: str) -> list[str]:
    group: Any = typer.main.get_command(app.build(name))
    command = group.commands[name] if hasattr(group, "commands") else group
    text = (command.help or "").strip()
    body, _, example = text.partition("Example:")
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
    usage = " ".join(
        ["m890", name, *(_metavar(a) for a in arguments), *(["[OPTIONS]"] if options else [])]
    )
    parts = [f"(m890-{name})=\n## m890 {name}", " ".join(body.split("\n\n")[0].split())]
    parts += [" ".join(p.split()) for p in body.split("\n\n")[1:]]
    parts.append(f"```sh\n{usage}\n```")
    rows = [(code(_metavar(a)), a.help or "", "") for a in arguments if hasattr(a, "help")]
    for o in options:
        names = ", ".join([*o.opts, *o.secondary_opts])
        default = "" if o.default is None or callable(o.default) else code(o.default)
        rows.append((code(names), o.help or "", default))
    if rows:
        parts.append(table(("option", "meaning", "default"), rows))
    if example:
        lines = [line.strip() for line in example.strip().split("\n") if line.strip()]
        parts.append("Example:\n\n```sh\n" + "\n".join(lines) + "\n```")
    return parts


def _metavar(argument: Any) -> str:
    return argument.metavar or (argument.name or "").upper()


def _benches(folder: Path) -> None:
    rows = [(code(f"m890 bench {n}"), text) for n, text in registry.names().items()]
    parts = [
        "# Benches",
        "Made from the modules in `sim/bench`. `m890 bench NAME --json` writes the figures as "
        "JSON; `make bench` runs them all and rewrites the page of measured figures.",
        table(("command", "what it measures"), rows),
    ]
    (folder / "benches.md").write_text(page(*parts), "utf-8")
