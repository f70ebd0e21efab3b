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
import random
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m890.firmware.agents.protocol import REQUEST, TOKENIZER, Message
from m890.firmware.agents.tasks import MAX_CALLS, Task, tasks
from m890.firmware.agents.world import make_world
from m890.firmware.models.checkpoint import save_weights
from m890.firmware.models.llama import Config

AGENT = Config(
    width=128, hidden=384, layers=4, heads=8, kv_heads=2, vocabulary=len(TOKENIZER), limit=1024
)


class Batch:
    """Worlds and tasks as padded index tensors.

    ``prompt`` [W, P] and ``task`` [W * K, T] hold tokens (0 where padded), ``offset`` [W * K] the
    prompt's length, ``target`` [W * K, T] the next token where the model writes it, else -1.
    """

    def __init__(self, groups: list[list[Task]]) -> None:
        prompts = [TOKENIZER.encode(group[0].world.prompt()) for group in groups]
        rows: list[tuple[list[int], list[int]]] = []
        for task in (task for group in groups for task in group):
            tokens: list[int] = []
            own: list[bool] = []
            for message in (Message(REQUEST, task.request), *task.transcript):
                tokens += TOKENIZER.encode(str(message))
                own += [message.own] * len(str(message))
            # a tag opens the model's line: predicting it is the model's decision too
            rows.append(
                (tokens[:-1], [t if o else -1 for t, o in zip(tokens[1:], own[1:], strict=True)])
            )
        self.per_world = len(groups[0])
        self.prompt = _pad(prompts, 0)
        self.task = _pad([row[0] for row in rows], 0)
        self.target = _pad([row[1] for row in rows], -1)
        self.prompt_length = torch.tensor([len(p) for p in prompts])
        self.task_length = torch.tensor([len(row[0]) for row in rows])


def _pad(rows: list[list[int]], fill: int) -> Tensor:
    out = torch.full((len(rows), max(map(len, rows))), fill)
    for row, values in zip(out, rows, strict=True):
        row[: len(values)] = torch.tensor(values)
    return out


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
            nn.init.normal_(out.weight, std=0.02 / math.sqrt(2 * c.layers))

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
    nn.init.normal_(linear.weight, std=0.02 if inputs > 200 else 0.04)
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
        nn.init.normal_(self.embedding.weight, std=0.5)
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

    def export(self) -> dict[str, np.ndarray]:
        """Weights by the names of ``llama.Weights``, matrices as [outputs, inputs]."""
        return {
            name.removesuffix(".weight"): value.detach().numpy().copy()
            for name, value in self.state_dict().items()
        }


def draw(rng: random.Random, worlds: int, per_world: int, max_calls: int) -> Batch:
    """Fresh training tasks: ``worlds`` prompts with ``per_world`` tasks each."""
    groups: list[list[Task]] = []
    for _ in range(worlds):
        world = make_world(rng, held=False, items=rng.randint(4, 10))
        stream = tasks(rng.getrandbits(48), held=False, world=world, max_calls=max_calls)
        groups.append([next(stream) for _ in range(per_world)])
    return Batch(groups)


def train(options: argparse.Namespace) -> None:
    """Train and save; prints a line every ``--every`` steps."""
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    rng = random.Random(options.seed)
    model = Model(AGENT)
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    optimiser = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}],
        lr=options.rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    begin = time.monotonic()
    step, tokens, done = 0, 0, 0.0
    losses: list[float] = []
    rights: list[float] = []
    while done < 1.0:
        minutes = (time.monotonic() - begin) / 60
        done = max(step / options.steps, minutes / options.minutes)
        rate = (
            options.rate
            * min(1.0, (step + 1) / 100)
            * (0.02 + 0.98 * math.cos(done * math.pi / 2) ** 2)
        )
        for group in optimiser.param_groups:
            group["lr"] = rate
        # short tasks first: copying and looking up form sooner and four times cheaper there
        batch = draw(rng, options.worlds, options.tasks, 3 if done < 0.08 else MAX_CALLS)
        loss, right = model(batch)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step += 1
        tokens += int(batch.prompt_length.sum() + batch.task_length.sum())
        losses.append(loss.item())
        rights.append(right.item())
        if step % options.every == 0 or done >= 1.0:
            recent = slice(-options.every, None)
            print(
                f"step {step} {minutes:.1f} min lr {rate:.1e} loss {np.mean(losses[recent]):.4f}"
                f" wrong {1 - np.mean(rights[recent]):.5f}"
                f" {tokens / (time.monotonic() - begin):.0f} tok/s",
                flush=True,
            )
        if step % (10 * options.every) == 0 or done >= 1.0:
            note = {
                "seed": options.seed,
                "steps": step,
                "tokens": tokens,
                "batch": f"{options.worlds} worlds x {options.tasks} tasks",
                "rate": options.rate,
                "loss": float(np.mean(losses[-options.every :])),
                "torch": torch.__version__,
            }
            save_weights(options.out, AGENT, model.export(), note)


def main() -> None:
    """Command line of the trainer."""
    parser = argparse.ArgumentParser(description="Train the agent's weights.")
    parser.add_argument("--out", type=Path, default=Path("agent.npz"))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="stop by then at the latest"
    )
    parser.add_argument("--seed", type=int, default=890)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--worlds", type=int, default=4, help="prompts in a batch")
    parser.add_argument("--tasks", type=int, default=4, help="tasks that share a prompt")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--every", type=int, default=20, help="steps between printed lines")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
