"""`m890 run`: plays tool-calling agents, or a plain language model, on the device."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from m890.hdl.config import MAX_CORES
from m890.hdl.config import preset as core_preset
from m890.hdl.numerics.formats import Format
from m890.sim.cli import errors

FORMATS = {f.name.lower(): f for f in Format}


def command(
    agents: Annotated[int, typer.Option(help="Agents that share one system prompt.", min=1)] = 4,
    device: Annotated[str, typer.Option(help="rtl or model.")] = "rtl",
    memory: Annotated[str, typer.Option(help="Behind the rtl device: fixed or hbm3.")] = "fixed",
    cores: Annotated[
        int, typer.Option(help="Cores on one memory, the heads divided.", min=1, max=MAX_CORES)
    ] = 1,
    preset: Annotated[str, typer.Option(help="The core: tiny, small, edge, m890.")] = "small",
    format: Annotated[str, typer.Option(help=f"KV format: {', '.join(FORMATS)}.")] = "fp16",
    rotate: Annotated[
        bool | None, typer.Option(help="Rotate K and V (default: integers, 4 bits).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the tasks and their prompt.", min=0)] = 1,
    chunk: Annotated[int, typer.Option(help="Prefill tokens per step and agent.", min=1)] = 64,
    branches: Annotated[
        int, typer.Option(help="Branches that each agent explores, joined by a vote.", min=1)
    ] = 1,
    temperature: Annotated[
        float, typer.Option(help="Sampling of branches after the first.", min=0.0)
    ] = 0.7,
    drafts: Annotated[
        bool, typer.Option("--drafts", help="Guess ahead and verify: several tokens per step.")
    ] = False,
    tags: Annotated[
        bool, typer.Option("--tags", help="Integrity tags: damaged tokens of KV are repaired.")
    ] = False,
    flips: Annotated[
        int, typer.Option(help="With --tags: bits of KV that flip before each step.", min=0)
    ] = 0,
    tenants: Annotated[
        int, typer.Option(help="Tenants that the agents belong to in turn; 0: all to one.", min=0)
    ] = 0,
    pages: Annotated[
        int, typer.Option(help="Pages of the device's pool; 0: for full contexts.", min=0)
    ] = 0,
    host_pages: Annotated[
        int, typer.Option(help="Pages of a host pool, for agents that wait for tools.", min=0)
    ] = 0,
    show: Annotated[bool, typer.Option(help="Print the transcripts.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for timeline.png and timeline.json (Perfetto).")
    ] = None,
    waves: Annotated[
        int, typer.Option(help="Cycles of waves to record into the folder of --out.", min=0)
    ] = 0,
    demo: Annotated[bool, typer.Option("--demo", help="Four agents, pictures, waves.")] = False,
    model: Annotated[
        Path | None, typer.Option(help="A llama2.c checkpoint to run instead of agents.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Its tok*.bin; tok512.bin beside it unless given.")
    ] = None,
    prompt: Annotated[str, typer.Option(help="With --model: the text to go on from.")] = "",
    tokens: Annotated[int, typer.Option(help="With --model: tokens to write.", min=1)] = 256,
) -> int:
    """Play tool-calling agents on the device, several at once, sharing one system prompt.

    Shows their progress live, then each agent's answer, tokens, cycles and KV traffic. With --model
    FILE a llama2.c checkpoint writes text instead. On several cores the text is that of one.

    Example: m890 run --agents 6 --device rtl --out run

    Example: m890 run --cores 2 --device model
    """
    core = core_preset(preset)
    if format not in FORMATS:
        raise errors.UserError(f"unknown KV format {format!r}; there are {', '.join(FORMATS)}")
    kv_format = FORMATS[format]
    if flips and not tags:
        raise errors.UserError("without tags nobody sees a flipped bit: add --tags")
    if model is not None:
        from m890.sim.cli.run_model import run_model

        return run_model(
            model, tokenizer, prompt, tokens, core, device, memory, cores, kv_format, rotate,
            drafts, tags, flips,
        )  # fmt: skip
    from m890.sim.cli.run_agents import Options, run_agents

    if demo and out is None:
        out = Path("demo")
    if waves and out is None:
        raise errors.UserError("waves need a folder: add --out DIR")
    if waves and device != "rtl":
        raise errors.UserError("only the rtl device has waves: drop --waves or use --device rtl")
    waves = waves or (1500 if demo and device == "rtl" else 0)
    if waves and cores > 1:
        raise errors.UserError("waves of agents are of one core: drop --cores, --waves and --demo")
    options = Options(
        agents, device, memory, cores, core, kv_format, rotate, seed, chunk, branches, temperature,
        drafts, tags, flips, tenants, pages, host_pages, show, out, waves,
    )  # fmt: skip
    return run_agents(options)


def say(text: str) -> None:
    """A line on standard error: standard output is for results."""
    print(text, file=sys.stderr, flush=True)
