"""`m890 run --model`: greedy text of a llama2.c checkpoint on the device."""

import sys
from pathlib import Path

from m890.firmware.cluster import drivers
from m890.firmware.models.checkpoint import load_llama2c
from m890.firmware.models.llama import Decoder
from m890.firmware.models.tokenizer import BpeTokenizer
from m890.hdl.config import CoreConfig
from m890.hdl.numerics.formats import Format
from m890.sim import play
from m890.sim.cli import errors, output
from m890.sim.devices import open_cores
from m890.sim.faults import Flips


def run_model(
    model: Path,
    tokenizer: Path | None,
    prompt: str,
    tokens: int,
    core: CoreConfig,
    device: str,
    memory: str,
    cores: int,
    format: Format,
    rotate: bool | None,
    drafts: bool,
    tags: bool,
    flips: int,
) -> int:
    """Writes the text to standard output as it comes, what it cost to standard error."""
    config, weights = load_llama2c(model)
    tokenizer = tokenizer or model.with_name(f"tok{config.vocabulary}.bin")
    if not tokenizer.exists():
        raise errors.UserError(f"there is no tokenizer {tokenizer}: name it with --tokenizer FILE")
    words = BpeTokenizer.load(tokenizer, config.vocabulary)
    fed = words.encode(prompt)
    if len(fed) >= config.limit:
        raise errors.UserError(
            f"the prompt has {len(fed)} tokens, beyond the model's {config.limit}: shorten it"
        )
    decoder = Decoder(config, weights)
    size = play.needed_memory(core, config, format, 1, tags=tags, cores=cores)
    chip = open_cores(
        device, core, size, cores, memory=memory, say=lambda text: print(text, file=sys.stderr)
    )
    each = drivers(chip, scratch_bytes=play.SCRATCH)
    backend = play.backend_of(each, decoder, format, rotate, tags=tags)
    faults = Flips(backend.cores, flips, seed=0)
    texts, shown, steps = list(fed), words.decode(fed), 0
    print(shown, end="", flush=True)
    nodes = play.draft_nodes(core, config) if drafts else 0
    for added in play.generate(decoder, backend, fed, tokens, drafts=nodes):
        texts += added
        steps += 1
        text = words.decode(texts)
        print(text[len(shown) :], end="", flush=True)
        shown = text
        faults.strike()
    print()
    total = backend.total
    utilisation = output.utilisation([c.total.beats / (total.cycles or 1) for c in backend.cores])
    output.stderr().print(
        f"{total.tokens} tokens, {total.cycles:,.0f} cycles,"
        f" {total.cycles_per_token:,.0f} per token, {total.kv_bytes:,.0f} KV bytes read,"
        f" {utilisation} ({device}, {core.name}, {format.name})"
    )
    if faults.count or total.repaired:
        output.stderr().print(
            f"{faults.count} bits flipped, {total.repaired} damaged tokens repaired"
        )
    if drafts:
        per_step = (len(texts) - len(fed)) / max(steps, 1)
        output.stderr().print(f"{per_step:.2f} tokens per step, drafts of {nodes} nodes")
    chip.close()
    return 0
