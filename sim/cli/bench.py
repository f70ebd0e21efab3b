"""`m890 bench`: measures figures, and writes the page of them."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from m890.sim.bench import compare, registry, report
from m890.sim.cli import errors, output


def command(
    name: Annotated[str | None, typer.Argument(help="The bench; none lists them.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Run every bench.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Write the figures as JSON.")] = False,
    seed: Annotated[int | None, typer.Option(help="Repeat the run of this seed.", min=0)] = None,
    preset: Annotated[str | None, typer.Option(help="Only this preset.")] = None,
    option: Annotated[
        list[str] | None, typer.Option("-o", "--option", help="An option of the bench, KEY=VALUE.")
    ] = None,
    write_docs: Annotated[
        Path | None, typer.Option(help="Renew the tables of this page, docs/performance.md.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--compare",
            metavar="COMMIT",
            help="Print the committed figures, quick ones measured anew, beside those of a commit;"
            " auto: where the branch left main, or else the commit before.",
        ),
    ] = None,
) -> int:
    """Measure one figure, or all, and print them or write them as JSON.

    A bench measures and does not judge: a missed goal ends with exit code 0.

    Example: m890 bench numerics --seed 7 --json
    """
    known = registry.names()
    if name is not None and every:
        raise errors.UserError("name a bench or say --all, not both")
    if base is not None:
        if name or every or json or write_docs or preset or option or seed is not None:
            raise errors.UserError("--compare chooses what it measures: leave out the rest")
        _compare(base)
        return 0
    if name is None and not every:
        if json or write_docs:
            raise errors.UserError(f"name a bench or say --all; the benches are {', '.join(known)}")
        _list(known)
        return 0
    if name is not None and name not in known:
        raise errors.UserError(f"no bench {name!r}: the benches are {', '.join(known)}")
    if write_docs is not None and not write_docs.parent.is_dir():
        raise errors.UserError(f"the folder {write_docs.parent} of the page does not exist")
    chosen = registry.fresh_seed() if seed is None else seed
    print(f"seed {chosen} (repeat with --seed {chosen})", file=sys.stderr)
    items, failed = _measure([name] if name else list(known), chosen, preset, option, write_docs)
    if json:
        output.write_json([item.as_dict() for item in items])
    else:
        _table(items)
    return int(failed)


def _compare(base: str) -> None:
    """The comparison as a page in Markdown."""
    root = compare.checkout()
    if root is None:
        raise errors.UserError("figures are compared in a checkout of the repository: clone m890")
    with output.Progress("compare") as progress:
        print(compare.compare(root, base, progress), end="")


def _measure(
    benches: list[str],
    seed: int,
    preset: str | None,
    options: list[str] | None,
    page: Path | None,
) -> tuple[list[registry.Item], bool]:
    """Runs the benches; one that fails among several is named and the rest go on."""
    items: list[registry.Item] = []
    failed = False
    for bench in benches:
        with output.Progress(bench) as progress:
            context = registry.BenchContext(seed, preset, progress, _parse(options))
            try:
                found = registry.run(bench, context)
            except Exception as error:
                if len(benches) == 1:
                    raise
                failed = True
                print(f"bench {bench} failed: ", end="", file=sys.stderr)
                errors.report(error)
                continue
        items += found
        if page is not None:
            report.save(page, bench, found)
            report.write(page)
    return items, failed


def _parse(options: list[str] | None) -> dict[str, str]:
    parsed = {}
    for text in options or []:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise errors.UserError(f"an option is written KEY=VALUE, not {text!r}")
        parsed[key] = value
    return parsed


def _list(known: dict[str, str]) -> None:
    out = output.console()
    table = Table(box=None, pad_edge=False)
    table.add_column("bench", style="bold")
    table.add_column("measures")
    for name, sentence in known.items():
        table.add_row(name, sentence)
    out.print(table)
    out.print("\nRun one with: m890 bench NAME")


def _table(items: list[registry.Item]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("figure", style="bold", overflow="fold")
    table.add_column("value", justify="right")
    table.add_column("unit")
    table.add_column("with", overflow="fold")
    for item in items:
        own = [f"{k} {v}" for k, v in item.config.items() if k not in ("seed", "commit")]
        table.add_row(item.name, report.number(item.value), item.unit, ", ".join(own))
    output.console().print(table)
