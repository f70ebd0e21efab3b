# pyright: reportMissingImports=false
"""Train the agent's weights (PyTorch on a CPU; a development extra, nothing else needs it).

    python -m m890.firmware.agents.train --steps 3000 --out agent.npz

Every step draws a few training worlds and several tasks in each. The tasks of one world share its
prompt as they do on the device: the prompt's K and V are computed once and every task attends to
them, which saves 40 % of the work of training on whole contexts. The loss counts only the tokens
that the model itself writes.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn import functional as F

from m890.firmware.agents.curriculum import Batch, Curriculum
from m890.firmware.agents.protocol import TOKENIZER
from m890.firmware.models.checkpoint import load_weights, save_weights
from m890.firmware.models.llama import Config

AGENT = Config(
    width=128,
    hidden=384,
    layers=4,
    heads=8,
    kv_heads=2,
    vocabulary=len(TOKENIZER),
    limit=1024,
    # the base of Llama 3: of a head's 16 features, 8 instead of 5 keep their phase over a whole
    # context, and only those can match a name with its place in the price list
    rope_base=500_000.0,
)


class Norm(nn.Module):
    """RMSNorm over the last axis."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight, self.epsilon)


class Layer(nn.Module):
    """One decoder layer on flat valid tokens; attention goes through padded rows."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        kv = c.kv_heads * c.head_dim
        self.attention_norm, self.ffn_norm = Norm(c.width, c.epsilon), Norm(c.width, c.epsilon)
        self.wq, self.wo = _linear(c.width, c.width), _linear(c.width, c.width)
        self.wk, self.wv = _linear(c.width, kv), _linear(c.width, kv)
        self.w1, self.w3 = _linear(c.width, c.hidden), _linear(c.width, c.hidden)
        self.w2 = _linear(c.hidden, c.width)
        for out in (self.wo, self.w2):
            out.weight.data /= math.sqrt(2 * c.layers)

    def forward(self, x: Tensor, plan: "Plan") -> Tensor:
        """x [N, width] of all valid tokens, prompts first -> the same shape."""
        c = self.c
        h = self.attention_norm(x)
        q = plan.rotate(self.wq(h).view(-1, c.heads, c.head_dim))
        k = plan.rotate(self.wk(h).view(-1, c.kv_heads, c.head_dim))
        v = self.wv(h).view(-1, c.kv_heads, c.head_dim)
        x = x + self.wo(plan.attend(q, k, v).reshape(-1, c.width))
        h = self.ffn_norm(x)
        return x + self.w2(F.silu(self.w1(h)) * self.w3(h))


def _linear(inputs: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(linear.weight, std=inputs**-0.5)
    return linear


class Plan:
    """The index work of one batch: valid tokens, positions, masks; shared by all layers."""

    def __init__(self, batch: Batch, c: Config) -> None:
        self.per_world = batch.per_world
        w, p = batch.prompt.shape
        r, t = batch.task.shape
        prompt_valid = torch.arange(p) < batch.prompt_length[:, None]  # [W, P]
        task_valid = torch.arange(t) < batch.task_length[:, None]  # [R, T]
        self.shapes = (w, p, r, t)
        self.prompt_index = prompt_valid.flatten().nonzero().squeeze(1)
        self.task_index = task_valid.flatten().nonzero().squeeze(1)
        offset = batch.prompt_length.repeat_interleave(self.per_world)
        position = torch.cat(
            (
                torch.arange(p).expand(w, p)[prompt_valid],
                (torch.arange(t) + offset[:, None])[task_valid],
            )
        )
        angle = position[:, None] * torch.from_numpy(c.frequencies())
        self.cos, self.sin = angle.cos()[:, None], angle.sin()[:, None]  # [N, 1, dh / 2]
        self.tokens = torch.cat(
            (batch.prompt.flatten()[self.prompt_index], batch.task.flatten()[self.task_index])
        )
        self.target = batch.target.flatten()[self.task_index]
        seen = prompt_valid.repeat_interleave(self.per_world, 0)[:, None].expand(r, t, p)
        causal = torch.ones(t, t, dtype=torch.bool).tril().expand(r, t, t)
        visible = torch.cat((seen, causal), 2)[:, None]  # [R, 1, T, P + T]
        self.mask = torch.zeros(visible.shape).masked_fill_(~visible, float("-inf"))

    def rotate(self, x: Tensor) -> Tensor:
        """Rotary embedding of neighbouring pairs; x [N, heads, dh]."""
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack((a * self.cos - b * self.sin, a * self.sin + b * self.cos), -1).flatten(
            2
        )

    def _spread(self, x: Tensor, index: Tensor, rows: int, length: int) -> Tensor:
        """Flat valid tokens [n, heads, dh] -> padded [rows, heads, length, dh]."""
        out = x.new_zeros(rows * length, *x.shape[1:]).index_copy(0, index, x)
        return out.view(rows, length, *x.shape[1:]).transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [N, H, dh], k and v [N, KVH, dh] -> [N, H, dh]; tasks see prompt and themselves."""
        w, p, r, t = self.shapes
        n = len(self.prompt_index)
        group = q.shape[1] // k.shape[1]
        parts = [
            (
                self._spread(x[:n], self.prompt_index, w, p),
                self._spread(x[n:], self.task_index, r, t),
            )
            for x in (q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1))
        ]
        (pq, tq), (pk, tk), (pv, tv) = parts
        prompt = F.scaled_dot_product_attention(pq, pk, pv, is_causal=True)
        own = F.scaled_dot_product_attention(
            tq,
            torch.cat((pk.repeat_interleave(self.per_world, 0), tk), 2),
            torch.cat((pv.repeat_interleave(self.per_world, 0), tv), 2),
            attn_mask=self.mask,
        )
        return torch.cat(
            (
                prompt.transpose(1, 2).reshape(w * p, *q.shape[1:])[self.prompt_index],
                own.transpose(1, 2).reshape(r * t, *q.shape[1:])[self.task_index],
            )
        )


class Model(nn.Module):
    """The llama decoder for training; ``export`` gives the arrays that ``llama.Decoder`` takes."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        self.embedding = nn.Embedding(c.vocabulary, c.width)
        nn.init.normal_(self.embedding.weight)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.layers))
        self.norm = Norm(c.width, c.epsilon)
        self.head = _linear(c.width, c.vocabulary)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The mean loss over the model's own tokens, and the share of them predicted right."""
        plan = Plan(batch, self.c)
        x = self.embedding(plan.tokens)
        for layer in self.layers:
            x = layer(x, plan)
        x = x[len(plan.prompt_index) :]
        own = plan.target >= 0
        logits = self.head(self.norm(x[own]))
        target = plan.target[own]
        return F.cross_entropy(logits, target), (logits.argmax(-1) == target).float().mean()

    def load(self, weights: Mapping[str, np.ndarray]) -> None:
        """Take weights as ``export`` gives them."""
        for name, value in self.state_dict().items():
            value.copy_(torch.from_numpy(weights[name.removesuffix(".weight")]))

    def export(self) -> dict[str, np.ndarray]:
        """Weights by the names of ``llama.Weights``, matrices as [outputs, inputs]."""
        return {
            name.removesuffix(".weight"): value.detach().numpy().copy()
            for name, value in self.state_dict().items()
        }


def optimisers(model: Model, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embedding, head and norms.

    Muon finds the copying heads in a third of AdamW's steps at this size.
    """
    matrices = [p for p in model.layers.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if all(p is not m for m in matrices)]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train(rank: int, options: argparse.Namespace) -> None:
    """Train and save; every process draws its own batches, gradients are averaged each step.

    Processes of one thread each bear a busy machine better than threads do: they wait for each
    other once a step, not once an operation.
    """
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{options.meeting}",
        rank=rank,
        world_size=options.processes,
    )
    model = Model(AGENT)
    before: dict[str, Any] | None = None
    if options.start is not None:
        _, weights, before = load_weights(options.start)
        model.load(weights)
    parameters = list(model.parameters())
    parts = optimisers(model, options.rate)
    curriculum = Curriculum(options.seed * 1000 + rank)
    if options.start is not None:
        curriculum.phase = len(Curriculum.PHASES) - 1
    begin = time.monotonic()
    step, tokens, done, minutes = 0, 0, 0.0, 0.0
    recent: list[tuple[float, float]] = []
    while done < 1.0:
        # warm up, hold, then fall to nothing over the second half
        rate = options.rate * min(1.0, (step + 1) / 50, max(0.01, 2 - 2 * done))
        for group in (group for part in parts for group in part.param_groups):
            group["lr"] = rate
        batch = curriculum.next()
        loss, right = model(batch)
        model.zero_grad()
        loss.backward()
        size = int(batch.prompt_length.sum() + batch.task_length.sum())
        figures = torch.tensor([loss.item(), right.item(), time.monotonic() - begin, size])
        figures = average(parameters, figures, options.processes).tolist()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for part in parts:
            part.step()
        step += 1
        minutes = figures[2] / 60
        done = max(step / options.steps, minutes / options.minutes)
        tokens += int(figures[3] * options.processes)
        recent.append((figures[0], 1 - figures[1]))
        curriculum.note(recent[-1][1])
        if rank == 0 and (step % options.every == 0 or done >= 1.0):
            mean, wrong = np.mean(recent, axis=0)
            recent.clear()
            print(
                f"step {step} {minutes:.1f} min {curriculum.PHASES[curriculum.phase]} {rate:.1e}"
                f" loss {mean:.4f} wrong {wrong:.5f} {tokens / (time.monotonic() - begin):.0f}/s",
                flush=True,
            )
            note = {
                "seed": options.seed,
                "start": before,
                "processes": options.processes,
                "steps": step,
                "tokens": tokens,
                "rate": options.rate,
                "loss": float(mean),
                "torch": torch.__version__,
            }
            save_weights(options.out, AGENT, model.export(), note)
    distributed.destroy_process_group()


def average(parameters: list[nn.Parameter], figures: Tensor, processes: int) -> Tensor:
    """Average gradients (in place) and some figures over all processes, in one exchange."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([*(gradient.flatten() for gradient in gradients), figures])
    distributed.all_reduce(flat)
    flat /= processes
    place = 0
    for gradient in gradients:
        gradient.copy_(flat[place : place + gradient.numel()].view_as(gradient))
        place += gradient.numel()
    return flat[place:]


def main() -> None:
    """Command line of the trainer."""
    parser = argparse.ArgumentParser(description="Train the agent's weights.")
    parser.add_argument("--out", type=Path, default=Path("agent.npz"))
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="stop by then at the latest"
    )
    parser.add_argument("--start", type=Path, help="weights to go on from, past the drills")
    parser.add_argument("--seed", type=int, default=890)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--processes", type=int, default=2, help="one per processor core")
    parser.add_argument("--every", type=int, default=100, help="steps between saved checkpoints")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        options.meeting = Path(folder) / "meeting"
        multiprocessing.spawn(train, args=(options,), nprocs=options.processes)


if __name__ == "__main__":
    main()
