"""How fast PyTorch tunes, and in how much memory: prints one JSON object.

tuning_pytorch.py MODEL.gguf BATCHES.json --method forward|mezo|mezo-tuned|lora [options]

BATCHES.json holds a list of batches. A batch is a list of rows; a row is {"tokens": [...], "trained":
[true, ...]}, or {"candidates": [row, row, ...], "answer": 0} where one of several continuations is
right. Batches are used in turn.

`mezo` does what the published implementation does: a seed, three passes that change all weights where
they lie and a fourth that updates them, each drawing all directions anew and adding them out of
place; logits of all rows. `mezo-tuned` adds in place, restores and updates in one pass, and makes
logits only of rows that a loss is taken of. `lora` is a step of AdamW on peft's adapter, `forward`
the loss alone.

Weights are those of the file, dequantised by transformers. The figures are the seconds of each step
after the first ones, the peak of resident memory over the whole life of the process, what was
resident after loading, and the losses.
"""

import argparse
import json
import pathlib
import resource
import time

import torch
import transformers
from torch.nn import functional as F

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
EPS = 1e-3
RATE = 1e-6


def load(path, dtype):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=dtype, attn_implementation="sdpa"
    )
    return model.eval()


class Batch:
    """Sequences of a batch in one block, padded at the end."""

    def __init__(self, rows):
        self.answers = [row["answer"] for row in rows if "candidates" in row]
        self.choices = len(rows[0]["candidates"]) if self.answers else 1
        rows = [r for row in rows for r in row.get("candidates", [row])]
        width = max(len(row["tokens"]) for row in rows)
        self.ids = torch.zeros(len(rows), width, dtype=torch.long)
        self.mask = torch.zeros(len(rows), width, dtype=torch.long)
        self.trained = torch.zeros(len(rows), width, dtype=torch.bool)
        for i, row in enumerate(rows):
            n = len(row["tokens"])
            self.ids[i, :n] = torch.tensor(row["tokens"])
            self.mask[i, :n] = 1
            self.trained[i, :n] = torch.tensor(row["trained"])
        self.padded = not bool(self.mask.all())

    def loss(self, model, rows_only):
        mask = self.mask if self.padded else None
        targets, wanted = self.ids[:, 1:], self.trained[:, 1:]
        if rows_only:
            states = model.model(input_ids=self.ids, attention_mask=mask, use_cache=False)
            logits = model.lm_head(states.last_hidden_state[:, :-1][wanted])
        else:
            logits = model(input_ids=self.ids, attention_mask=mask, use_cache=False).logits
            logits = logits[:, :-1][wanted] if self.answers else logits[:, :-1]
        if not self.answers and not rows_only:
            picked = torch.where(wanted, targets, -100)
            return F.cross_entropy(logits.float().flatten(0, 1), picked.flatten())
        losses = F.cross_entropy(logits.float(), targets[wanted], reduction="none")
        if not self.answers:
            return losses.mean()
        owner = torch.arange(len(self.ids)).unsqueeze(1).expand_as(wanted)[wanted]
        sums = torch.zeros(len(self.ids)).index_add(0, owner, losses)
        scores = -(sums / wanted.sum(1)).view(-1, self.choices)
        return F.cross_entropy(scores, torch.tensor(self.answers))


def perturb(parameters, seed, scale):
    torch.manual_seed(seed)
    for p in parameters:
        z = torch.normal(mean=0, std=1, size=p.data.size(), dtype=p.data.dtype)
        p.data = p.data + scale * z * EPS


def update(parameters, seed, projected):
    torch.manual_seed(seed)
    for p in parameters:
        z = torch.normal(mean=0, std=1, size=p.data.size(), dtype=p.data.dtype)
        p.data = p.data - RATE * (projected * z)


def add(parameters, seed, scale):
    torch.manual_seed(seed)
    for p in parameters:
        z = torch.normal(mean=0, std=1, size=p.data.size(), dtype=p.data.dtype)
        p.data.add_(z, alpha=scale)


class Mezo:
    def __init__(self, model, tuned):
        self.model, self.tuned = model, tuned
        self.parameters = [p for p in model.parameters() if p.requires_grad]

    def loss(self, batch):
        with torch.inference_mode():
            return batch.loss(self.model, self.tuned).item()

    def step(self, step, batch):
        p, seed = self.parameters, 7919 * step + 1
        if self.tuned:
            add(p, seed, EPS)
            plus = self.loss(batch)
            add(p, seed, -2 * EPS)
            minus = self.loss(batch)
            add(p, seed, EPS - RATE * (plus - minus) / (2 * EPS))
            return plus
        perturb(p, seed, 1)
        plus = self.loss(batch)
        perturb(p, seed, -2)
        minus = self.loss(batch)
        perturb(p, seed, 1)
        update(p, seed, (plus - minus) / (2 * EPS))
        return plus


class Forward:
    def __init__(self, model):
        self.model = model

    def step(self, _step, batch):
        with torch.inference_mode():
            return batch.loss(self.model, False).item()


class Lora:
    def __init__(self, model, checkpointing, rank):
        import peft

        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        spec = peft.LoraConfig(
            r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=targets,
            task_type="CAUSAL_LM",
        )
        self.model = peft.get_peft_model(model, spec)
        self.model.train()
        if checkpointing:
            self.model.enable_input_require_grads()
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        tuned = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(tuned, lr=1e-4, weight_decay=0.0)
        self.tuned = tuned

    def step(self, _step, batch):
        loss = batch.loss(self.model, False)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.tuned, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()


def resident_bytes():
    with open("/proc/self/status") as status:
        kib = next(line.split()[1] for line in status if line.startswith("VmRSS"))
    return int(kib) * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("batches", type=pathlib.Path)
    parser.add_argument("--method", choices=["forward", "mezo", "mezo-tuned", "lora"], required=True)
    parser.add_argument("--dtype", choices=DTYPES, default="f32")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.utils.logging.set_verbosity_error()
    model = load(options.model.resolve(), DTYPES[options.dtype])
    batches = [Batch(rows) for rows in json.loads(options.batches.read_text())]
    loaded = resident_bytes()
    if options.method == "lora":
        worker = Lora(model, options.checkpointing, options.rank)
    elif options.method == "forward":
        worker = Forward(model)
    else:
        worker = Mezo(model, options.method == "mezo-tuned")
    seconds, losses = [], []
    for step in range(options.warmup + options.steps):
        begin = time.perf_counter()
        losses.append(worker.step(step, batches[step % len(batches)]))
        seconds.append(time.perf_counter() - begin)
    print(json.dumps({
        "seconds": seconds[options.warmup:],
        "losses": losses,
        "loaded_bytes": loaded,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "torch": torch.__version__,
    }))


if __name__ == "__main__":
    main()
