"""What transformers computes from real models: logits for a few prompts, and perplexity of a text.

    python scripts/oracles/model_logits.py smollm2=FILE.gguf qwen2_5_coder=FILE.gguf

writes `crates/offshoot-engine/tests/data/logits_NAME.json` for each. Needs `gguf` (0.19),
`tokenizers` (0.23), `torch` (2.15), `transformers` (5.23) and `accelerate`. transformers
dequantises the file's weights and computes in float32 throughout; `weights_sha256` is over all of
them, sorted by name, each as its name, a zero byte and its little-endian f32 bits.

Of each prompt's last 8 positions the file has the logits of the 10 likeliest tokens and of 32
fixed pseudo-random ones, and the logarithm of the sum of exp(logit). The text is `text.txt` beside
it, cut into windows of 512 tokens that are run apart; every token but a window's first is scored
given those before it in the window.
"""

import hashlib
import json
import math
import sys
from pathlib import Path

import torch
from tokenizer_ids import build, id_bytes
from transformers import AutoModelForCausalLM

DATA = Path(__file__).parents[2] / "crates/offshoot-engine/tests/data"
WINDOW, POSITIONS, LIKELIEST, RANDOM = 512, 8, 10, 32

CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    "What is the capital of France, and how many people live there?<|im_end|>\n"
    "<|im_start|>assistant\n"
)
CODE = '''def fibonacci(n: int) -> int:
    """Returns the n-th Fibonacci number, counting from 0."""
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return'''
MIXED = "Der schnelle braune Fuchs springt über den faulen Hund. 敏捷的棕色狐狸 1234567890 ≈ 1.2e9; "
SHORT = "The"


def random_ids(vocab, seed):
    """xorshift64*, as in the other scripts: distinct ids below `vocab`."""
    state, ids = seed * 0x9E3779B97F4A7C15 % 2**64, []
    while len(ids) < RANDOM:
        state ^= state >> 12
        state = (state ^ (state << 25)) % 2**64
        state ^= state >> 27
        token = (state * 0x2545F4914F6CDD1D % 2**64 >> 32) % vocab
        if token not in ids:
            ids.append(token)
    return ids


def rounded(values):
    return [round(float(value), 5) for value in values]


def prompt(model, tokens, seed):
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0, -POSITIONS:]
    assert logits.dtype == torch.float32
    ids = random_ids(logits.shape[1], seed)
    positions = []
    for row in logits:
        top = row.topk(LIKELIEST)
        positions.append(
            {
                "top_ids": top.indices.tolist(),
                "top_logits": rounded(top.values),
                "random_logits": rounded(row[ids]),
                "log_sum_exp": round(float(row.double().logsumexp(0)), 5),
            }
        )
    return {"tokens": tokens, "random_ids": ids, "positions": positions}


def perplexity(model, tokens):
    surprise, scored, windows = 0.0, 0, []
    for start in range(0, len(tokens), WINDOW):
        window = torch.tensor([tokens[start : start + WINDOW]])
        with torch.no_grad():
            logits = model(window).logits[0, :-1].double()
        chosen = logits.gather(1, window[0, 1:, None])[:, 0]
        windows.append(float((logits.logsumexp(1) - chosen).sum()))
        surprise, scored = surprise + windows[-1], scored + len(chosen)
    return {
        "window": WINDOW,
        "tokens": len(tokens),
        "tokens_sha256": hashlib.sha256(id_bytes(tokens)).hexdigest(),
        "scored": scored,
        "nats_of_windows": rounded(windows),
        "perplexity": round(math.exp(surprise / scored), 6),
    }


def weights_sha256(model):
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        assert weight.dtype == torch.float32
        digest.update(name.encode() + b"\0")
        digest.update(weight.detach().contiguous().numpy().astype("<f4").data)
    return digest.hexdigest()


def reference(path):
    tokenizer, _ = build(path)
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    text = (DATA / "text.txt").read_text()
    prompts = [CHAT, CODE, MIXED, SHORT, text[:1500]]
    encoded = [tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in prompts]
    return {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "weights_sha256": weights_sha256(model),
        "prompts": [prompt(model, tokens, seed) for seed, tokens in enumerate(encoded, start=1)],
        "text": perplexity(model, tokenizer.encode(text, add_special_tokens=False).ids),
    }


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        name, path = argument.split("=", 1)
        out = DATA / f"logits_{name}.json"
        out.write_text(json.dumps(reference(Path(path))) + "\n")
        print(out.name, out.stat().st_size, "bytes")
