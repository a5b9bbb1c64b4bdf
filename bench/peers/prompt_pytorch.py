"""How fast PyTorch reads a prompt: prints {"bf16": tokens/s, "f32": tokens/s} as JSON.

prompt_pytorch.py MODEL.gguf [--threads N] [--tokens N] [--repeats N]

The weights are those of the GGUF file, dequantised by transformers. One forward pass fills the
cache and gives the logits of the last position, as a generation's first step does. The figure is
the median over the repeats, after two passes that warm up.
"""

import argparse
import json
import pathlib
import statistics
import time

import torch
import transformers


def load(path, dtype):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=dtype, attn_implementation="sdpa"
    )
    return model.eval()


@torch.inference_mode()
def tokens_per_s(model, n_tokens, n_repeats):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(100, 10_000, (1, n_tokens), generator=generator)
    seconds = []
    for _ in range(2 + n_repeats):
        begin = time.perf_counter()
        model(input_ids=ids, use_cache=True, logits_to_keep=1)
        seconds.append(time.perf_counter() - begin)
    return n_tokens / statistics.median(seconds[2:])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.utils.logging.set_verbosity_error()
    model = load(options.model.resolve(), torch.float32)
    f32 = tokens_per_s(model, options.tokens, options.repeats)
    bf16 = tokens_per_s(model.to(torch.bfloat16), options.tokens, options.repeats)
    print(json.dumps({"bf16": bf16, "f32": f32}))


if __name__ == "__main__":
    main()
