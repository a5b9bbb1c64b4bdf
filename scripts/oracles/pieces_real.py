"""Real SentencePiece tokenizers: ours from a GGUF file and from `tokenizer.json`, against Hugging
Face's `tokenizers`, SentencePiece itself and Mistral's library.

    cargo build -p offshoot-models --example tokenize_texts
    python scripts/oracles/pieces_real.py NAME FORM [FORM ...]

A FORM is a GGUF file with a tokenizer, a `tokenizer.json`, a SentencePiece `.model` or a
`tekken.json`. Each is put into a model without layers worth the name; a `.model` and a `tekken.json`
become a GGUF file as llama.cpp's converter writes it, `tekken.json` by all pairs of tokens that make
a token. All are given a text of 1 MB and 100,000 random strings of Unicode, and the table says how
many texts each pair of them tells apart. Needs `gguf` (0.19), `tokenizers` (0.23), `sentencepiece`
(0.2) and `mistral-common`; no part of continuous integration.
"""

import base64
import json
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from gguf import GGUFReader, GGUFWriter
from mixed_text import mixed_text, random_strings

PROGRAM = Path(__file__).parents[2] / "target/debug/examples/tokenize_texts"
HIDDEN, HEADS, FFN = 32, 4, 32


def tensors(rows):
    half = lambda *shape: np.zeros(shape, dtype=np.float16)
    ones = lambda: np.ones(HIDDEN, dtype=np.float32)
    return {
        "token_embd.weight": ("model.embed_tokens.weight", half(rows, HIDDEN)),
        "output_norm.weight": ("model.norm.weight", ones()),
        "blk.0.attn_norm.weight": ("model.layers.0.input_layernorm.weight", ones()),
        "blk.0.ffn_norm.weight": ("model.layers.0.post_attention_layernorm.weight", ones()),
        **{
            f"blk.0.attn_{a}.weight": (f"model.layers.0.self_attn.{b}_proj.weight", half(HIDDEN, HIDDEN))
            for a, b in [("q", "q"), ("k", "k"), ("v", "v"), ("output", "o")]
        },
        **{
            f"blk.0.ffn_{p}.weight": (f"model.layers.0.mlp.{p}_proj.weight", half(FFN, HIDDEN))
            for p in ["gate", "up"]
        },
        "blk.0.ffn_down.weight": ("model.layers.0.mlp.down_proj.weight", half(HIDDEN, FFN)),
    }


def gguf_model(path, keys, rows, arch="llama"):
    """A model around `tokenizer.*` keys."""
    writer = GGUFWriter(path, arch)
    writer.add_block_count(1), writer.add_context_length(64), writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN), writer.add_head_count(HEADS), writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5), writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10000.0)
    for key, value in keys.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_string(key, value)
    for name, (_, data) in tensors(rows).items():
        writer.add_tensor(name, data)
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file()
    writer.close()


def folder_model(path, tokenizer, rows, names):
    path.mkdir()
    (path / "tokenizer.json").write_bytes(Path(tokenizer).read_bytes())
    config = Path(tokenizer).with_name("tokenizer_config.json")
    if config.exists():
        (path / "tokenizer_config.json").write_bytes(config.read_bytes())
    (path / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": rows,
        "hidden_size": HIDDEN, "intermediate_size": FFN, "num_hidden_layers": 1,
        "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 64, "rope_theta": 10000.0, "tie_word_embeddings": True,
        "hidden_act": "silu",
    }))  # fmt: skip
    header, offset, blob = {}, 0, b""
    for name, data in tensors(rows).values():
        data = data.astype(np.float16)
        header[name] = {"dtype": "F16", "shape": list(data.shape),
                        "data_offsets": [offset, offset + data.nbytes]}  # fmt: skip
        offset += data.nbytes
        blob += data.tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + blob)


def ours(model, texts):
    data = b"".join(struct.pack("<I", len(t)) + t for t in (text.encode() for text in texts))
    out = subprocess.run([PROGRAM, model], input=data, stdout=subprocess.PIPE, check=True).stdout
    ids, decoded, at = [], [], 0
    for _ in texts:
        (n,) = struct.unpack_from("<I", out, at)
        ids.append(list(struct.unpack_from(f"<{n}I", out, at + 4)))
        at += 4 + 4 * n
        (n,) = struct.unpack_from("<I", out, at)
        decoded.append(out[at + 4 : at + 4 + n].decode())
        at += 4 + n
    return ids, decoded


def of_gguf(path, folder):
    fields = GGUFReader(path).fields
    keys = {k: f.contents() for k, f in fields.items() if k.startswith("tokenizer.")}
    arch = fields["general.architecture"].contents()
    rows, keys["general.name"] = len(keys["tokenizer.ggml.tokens"]), "Phi-3" if "phi-3" in str(path) else arch
    model = folder / "of_gguf.gguf"
    # Another family's tokenizer behaves by its architecture; its tensors would not be llama's.
    gguf_model(model, keys, rows)
    return {"ours, GGUF": lambda texts: ours(path if arch == "gemma3" else model, texts)}


def of_json(path, folder):
    from tokenizers import Tokenizer

    library = Tokenizer.from_file(path)
    library.no_padding(), library.no_truncation()
    rows = len(json.loads(Path(path).read_text())["model"]["vocab"])
    folder_model(folder / "folder", path, rows, None)

    def theirs(texts):
        ids = [e.ids for e in library.encode_batch(texts, add_special_tokens=False)]
        return ids, library.decode_batch(ids, skip_special_tokens=False)

    return {"ours, folder": lambda texts: ours(folder / "folder", texts), "tokenizers": theirs}


def of_pieces(path, folder):
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor(model_file=path)
    n = model.get_piece_size()
    kinds = [
        2 if model.is_unknown(i) else 3 if model.is_control(i) else 5 if model.is_unused(i)
        else 6 if model.is_byte(i) else 1
        for i in range(n)
    ]  # fmt: skip
    gguf_model(folder / "of_model.gguf", {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [model.id_to_piece(i) for i in range(n)],
        "tokenizer.ggml.scores": [model.get_score(i) for i in range(n)],
        "tokenizer.ggml.token_type": kinds, "tokenizer.ggml.bos_token_id": model.bos_id(),
        "tokenizer.ggml.eos_token_id": model.eos_id(), "tokenizer.ggml.unknown_token_id": model.unk_id(),
        "tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": False,
    }, n)  # fmt: skip

    def theirs(texts):
        ids = model.encode(texts)
        return ids, model.decode(ids)

    return {"ours, .model": lambda texts: ours(folder / "of_model.gguf", texts), "sentencepiece": theirs}


def alphabet():
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in printable]
    return {**{b: chr(b) for b in printable}, **{b: chr(256 + i) for i, b in enumerate(rest)}}


def of_tekken(path, folder):
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    library, letters = Tekkenizer.from_file(path), alphabet()
    data = json.loads(Path(path).read_text())
    special = data["config"]["default_num_special_tokens"]
    count = data["config"]["default_vocab_size"] - special
    words = [base64.b64decode(entry["token_bytes"]) for entry in data["vocab"][:count]]
    ranks = {word: i for i, word in enumerate(words)}
    merges = []
    for word in words:
        pairs = [(word[:i], word[i:]) for i in range(1, len(word))]
        pairs = [pair for pair in pairs if pair[0] in ranks and pair[1] in ranks]
        merges += sorted(pairs, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    spell = lambda word: "".join(letters[b] for b in word)
    gguf_model(folder / "tekken.gguf", {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "tekken",
        "tokenizer.ggml.tokens": [f"<SPECIAL_{i}>" for i in range(special)] + [spell(w) for w in words],
        "tokenizer.ggml.token_type": [3] * special + [1] * count,
        "tokenizer.ggml.merges": [f"{spell(a)} {spell(b)}" for a, b in merges],
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
    }, special + count)  # fmt: skip

    def theirs(texts):
        ids = [library.encode(text, bos=False, eos=False) for text in texts]
        return ids, [library.decode(row) for row in ids]

    return {"ours, tekken": lambda texts: ours(folder / "tekken.gguf", texts), "mistral-common": theirs}


def forms(path, folder):
    if path.endswith(".gguf"):
        return of_gguf(path, folder)
    if "tekken" in path:
        return of_tekken(path, folder)
    return of_json(path, folder) if path.endswith(".json") else of_pieces(path, folder)


def main(name, paths):
    texts = random_strings(100_000)
    mixed = mixed_text(1_000_000)
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for path in paths:
            found |= forms(path, Path(folder))
        results = {}
        for form, run in found.items():
            start = time.time()
            results[form] = run([mixed, *texts])
            print(f"{name}: {form}: {time.time() - start:.1f} s, {len(results[form][0][0])} ids of the mixed text")
        first, *others = results
        for form in others:
            for what, a, b in zip(["ids", "decoded"], results[first], results[form]):
                wrong = [i for i, (x, y) in enumerate(zip(a[1:], b[1:])) if x != y]
                print(f"{name}: {first} | {form}: {what}: mixed text {'equal' if a[0] == b[0] else 'differs'}, "
                      f"{len(wrong)} of {len(texts)} strings differ", [(texts[i], a[i + 1], b[i + 1]) for i in wrong[:2]])  # fmt: skip
        for i, text in enumerate([mixed, *texts]):
            if results[first][1][i] != text:
                break
        wrong = sum(a != b for a, b in zip(results[first][1], [mixed, *texts]))
        print(f"{name}: {first}: {wrong} texts do not come back as they were")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
