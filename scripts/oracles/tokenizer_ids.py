"""What Hugging Face's `tokenizers` makes of known text with the tokenizers of real models.

    python scripts/oracles/tokenizer_ids.py smollm2=FILE.gguf qwen2_5_coder=FILE.gguf

writes `crates/offshoot-models/tests/data/tokenizer_NAME.json` for each. Needs `gguf` (0.19) and
`tokenizers` (0.23).

The vocabulary and merges come from the file; the rest is the published `tokenizer.json` of each
family, built here by hand. transformers' own reading of a GGUF file is no reference: as of 5.23 it
leaves out SmolLM2's Digits step and Qwen2's NFC.
"""

import hashlib
import json
import struct
import sys
from pathlib import Path

from gguf import GGUFReader
from mixed_text import DATA, mixed_text, random_ids, random_strings
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def pipeline(tokenizer, pre):
    byte_level = pre_tokenizers.ByteLevel
    if pre == "smollm":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                byte_level(add_prefix_space=False, trim_offsets=True, use_regex=True),
            ]
        )
    elif pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(QWEN2), behavior="isolated", invert=False),
                byte_level(add_prefix_space=False, trim_offsets=False, use_regex=False),
            ]
        )
    else:
        raise SystemExit(f"no published pipeline for pre-tokenizer {pre!r}")


def build(path):
    fields = GGUFReader(path).fields
    tokens, kinds, merges, pre = (
        fields[f"tokenizer.ggml.{key}"].contents()
        for key in ("tokens", "token_type", "merges", "pre")
    )
    vocab = {text: i for i, (text, kind) in enumerate(zip(tokens, kinds)) if kind != UNUSED}
    model = models.BPE(vocab=vocab, merges=[tuple(merge.split(" ")) for merge in merges])
    tokenizer = Tokenizer(model)
    pipeline(tokenizer, pre)
    tokenizer.decoder = decoders.ByteLevel()
    for i, (text, kind) in enumerate(zip(tokens, kinds)):
        if kind in (UNKNOWN, CONTROL, USER_DEFINED):
            special = kind != USER_DEFINED
            add = tokenizer.add_special_tokens if special else tokenizer.add_tokens
            add([AddedToken(text, special=special, normalized=False)])
            assert tokenizer.token_to_id(text) == i, text
    return tokenizer, len(tokens)


def digests(parts):
    parts = list(parts)
    return {
        "total": hashlib.sha256(b"".join(parts)).hexdigest(),
        "parts": [hashlib.sha256(part).hexdigest()[:8] for part in parts],
    }


def id_bytes(ids):
    return struct.pack(f"<{len(ids)}I", *ids)


def sized(data):
    return struct.pack("<I", len(data)) + data


def chunks(items, size):
    return (items[i : i + size] for i in range(0, len(items), size))


EXAMPLES = [
    "", " ", "Hello, world!", "  two  spaces   three", "trailing   ", "tab\tand\nnew\r\nline\n\n\n",
    "I'm sure they'll say it's fine; WE'VE, YOU'D", "café cafe\u0301 Zürich Å \u212b", "1234567890",
    "in 2024, 3.14159 and 1,000,000", "x  42  y", "٣٤ १२ ２０ Ⅷ ½ ①", "你好，世界！这是一个测试。",
    "日本語のテキストとカタカナ ー ｶﾞ", "한국어 \u1112\u1161\u11ab", "Россия и Україна", "مرحبا بالعالم السَّلَامُ",
    "नमस्ते दुनिया क्षत्रिय \u0958", "ภาษาไทย", "בְּרֵאשִׁית", "😀👍🏽🇺🇸❤️", "👨\u200d👩\u200d👧\u200d👦", "\u00a0\u3000\u2003 \u200b",
    "def f(x):\n    return x ** 2  # comment\n", "\tif (a[i] >= 0x1F) {\n\t\treturn;\n\t}\n",
    "https://example.org/a?b=c&d=e#f", "a_b__c camelCase SCREAMING_CASE", "!!!??...---***",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", "<|endoftext|>", "<|im_start", "|im_end|>",
    "<<|im_end|>>", "<repo_name>x<file_sep>y", "<reponame><gh_stars>5", "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>",
    "<tool_call>\n{\"name\": \"f\"}\n</tool_call>", "[PAD151665]", "cafe\u0301<|im_end|>\u0301", " <|im_end|> ",
    "\u0000\u0001\u0004\u0006\u0013\u0014\u0016\u001d\u007f", "a\u0004b", "\U00040000\U000f0000\U0010ffff", "\ufffd\ufeff",
    "'s'S'ſ'LL'll 't'T", "can\u2019t", "a" * 300, " " * 130 + "x", "\n" * 70, "ab" * 100, "Ġthe Ċ â",
    "naïveté—“quoted”…", "ﬁ ﬀ ﷺ ǆ", "\r\r\n\n\r",
]  # fmt: skip


def reference(path):
    tokenizer, vocab_size = build(path)

    def encode(text, plain=False):
        tokenizer.encode_special_tokens = plain
        return tokenizer.encode(text, add_special_tokens=False).ids

    def decode(ids):
        return tokenizer.decode(ids, skip_special_tokens=False).encode()

    strings, lists = random_strings(100_000), random_ids(10_000, vocab_size)
    return {
        "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest(),
        "vocab_size": vocab_size,
        "mixed": digests(map(id_bytes, chunks(encode(mixed_text(1_000_000)), 4096))),
        "random": digests(
            b"".join(sized(id_bytes(encode(text, plain=True))) for text in part)
            for part in chunks(strings, 1000)
        ),
        "decoded": digests(
            b"".join(sized(decode(ids)) for ids in part) for part in chunks(lists, 100)
        ),
        "examples": [
            {"text": text, "parse": encode(text), "plain": encode(text, plain=True)}
            for text in EXAMPLES
        ],
    }


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        name, path = argument.split("=", 1)
        out = DATA / f"tokenizer_{name}.json"
        out.write_text(json.dumps(reference(path), ensure_ascii=True) + "\n")
        print(out.name, out.stat().st_size, "bytes")
