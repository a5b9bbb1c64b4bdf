"""Small SentencePiece vocabularies in the forms that real families have, and what SentencePiece and
Hugging Face's `tokenizers` make of text with them.

    python scripts/oracles/pieces.py

writes `crates/offshoot-models/tests/data/pieces.json`. Needs `sentencepiece` (0.2) and `tokenizers`
(0.23). The vocabularies are trained here, on `mixed_text.py`'s text. A GGUF file's tokens, scores and
kinds are as llama.cpp's converter writes them: added tokens have -1000 for a score, and spaces for
the signs of spaces. `tokenizer.json` is as transformers writes it, its merges by the rule of
`generate_merges`, in the older order but for Gemma.
"""

import io
import json
import random
from collections import Counter

from mixed_text import DATA, mixed_text
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers import processors

SPACE = "\u2581"
TURNS = ["<|user|>", "<|assistant|>", "<|end|>", "<|system|>"]
RUNS = [c * n for c in ("\n", SPACE, "\t") for n in range(1 if c == "\n" else 2, 9)]

TEXTS = [
    "", " ", "  ", "Hello, world!", " Hello", "  two  spaces   three", "trailing   ", "I'm sure they'll",
    "tab\tand\nnew\r\nline\n\n\n", "café cafe\u0301 Zürich", "1234567890", "in 2024, 3.14159 and 1,000,000",
    "你好，世界！这是一个测试。", "Россия и Україна", "नमस्ते दुनिया", "😀👍🏽🇺🇸❤️", "\u00a0\u3000\u2003 \u200b",
    "def f(x):\n    return x ** 2  # comment\n", "\tif (a[i] >= 0x1F) {\n\t\treturn;\n\t}\n", "a" * 50,
    " " * 30 + "x", "\n" * 20, "ab" * 30, "\u0000\u0001\u007f", "\U00040000\U0010ffff", "\ufffd\ufeff", "<0x0A>",
    "the theme then there", "return total; return sum", "<table><b>bold</b></table>", "\t\t\t\t\t\t\t\t\t\t\tx",
]  # fmt: skip
# With added tokens, for Hugging Face's library alone.
MARKED = [
    "<s>Hello</s>", "<s> Hello </s> again", "a<s>b", "<|user|>\nHi there<|end|>\n<|assistant|>\n",
    "<|end|>  \n <|end|>x", "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n",
    "<unk><s></s>", "x <|endoftext|> y", "</s>  z", SPACE + "a" + SPACE + SPACE + "b", "<start_of_turn>  <end_of_turn>",
]  # fmt: skip


def train(vocab_size, user_defined, model_type="bpe", **options):
    out = io.BytesIO()
    text = mixed_text(200_000) + "\n".join(TEXTS)
    # Rare characters are left to the bytes.
    known = {c for c, _ in Counter(text).most_common(200)}
    lines = "".join(c for c in text if c in known).split("\n")
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=out, model_type=model_type, vocab_size=vocab_size,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True, character_coverage=1.0, user_defined_symbols=user_defined,
        split_digits=True, num_threads=1, minloglevel=2, **options,
    )  # fmt: skip
    return SentencePieceProcessor(model_proto=out.getvalue())


def pieces(model):
    n = model.get_piece_size()
    texts = [model.id_to_piece(i) for i in range(n)]
    return texts, [model.get_score(i) for i in range(n)]


def generate_merges(texts, scores, by_length):
    vocab = {text: i for i, text in enumerate(texts)}
    merges = []
    for text, score in zip(texts, scores):
        pairs = [(text[:i], text[i:]) for i in range(1, len(text))]
        pairs = [(a, b, score) for a, b in pairs if a in vocab and b in vocab]
        merges += sorted(pairs, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
    if by_length:
        merges.sort(key=lambda merge: (merge[2], len(merge[0]), len(merge[1])), reverse=True)
    else:
        merges.sort(key=lambda merge: merge[2], reverse=True)
    return [(a, b) for a, b, _ in merges]


def library(texts, merges, unk, added, gemma):
    vocab = {text: i for i, text in enumerate(texts)}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token=unk, fuse_unk=True, byte_fallback=True)
    )
    replace = normalizers.Replace(" ", SPACE)
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if gemma:
        tokenizer.normalizer = replace
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replace])
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    for token in added:
        tokenizer.add_special_tokens([token]) if token.special else tokenizer.add_tokens([token])
    bos = "<bos>" if gemma else "<s>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, vocab[bos])]
    )
    return tokenizer


def special(text, **how):
    return AddedToken(text, special=True, normalized=False, **how)


def plain(text, **how):
    return AddedToken(text, special=False, normalized=False, **how)


def llama():
    model = train(620, [])
    texts, scores = pieces(model)
    added = [special(text) for text in ("<unk>", "<s>", "</s>")]
    kinds = [2 if i == 0 else 3 if i < 3 else 6 if text.startswith("<0x") else 1 for i, text in enumerate(texts)]
    merges = generate_merges(texts, scores, by_length=False)
    return model, texts, scores, kinds, library(texts, merges, "<unk>", added, False), (1, 2, 0)


def phi3():
    """Llama's, with turns behind the vocabulary that take the white space behind them."""
    model, texts, scores, kinds, _, _ = llama()
    merges = generate_merges(texts, scores, by_length=False)
    n = len(texts)
    kinds[0], kinds[2] = 3, 4
    added = [special("<unk>"), special("<s>"), plain("</s>", rstrip=True), special("<|endoftext|>")]
    added += [special(text, rstrip=True) for text in TURNS]
    texts = texts + ["<|endoftext|>"] + TURNS
    tokenizer = library(texts[:n], merges, "<unk>", added, False)
    for i, text in enumerate(texts):
        assert tokenizer.token_to_id(text) == i, text
    scores = [-1000.0 if i < 3 else score for i, score in enumerate(scores)] + [-1000.0] * 5
    return model, texts, scores, kinds + [3] * 5, tokenizer, (1, n, 0)


def gemma():
    marks = ["<mask>", "<start_of_turn>", "<end_of_turn>", *RUNS, "<table>", "</table>", "<b>", "</b>"]
    model = train(660, marks, pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>",
                  bos_piece="<bos>", add_dummy_prefix=False)  # fmt: skip
    texts, scores = pieces(model)
    control = {"<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"}
    is_added = lambda text: text in control or text in marks
    added = [special(t) if t in control and t != "<mask>" else plain(t) for t in texts if is_added(t)]
    merges = generate_merges(texts, scores, by_length=True)
    tokenizer = library(texts, merges, "<unk>", added, True)
    kinds = [3 if t in control else 4 if t in marks else 6 if t.startswith("<0x") else 1 for t in texts]
    scores = [-1000.0 if is_added(t) else score for t, score in zip(texts, scores)]
    texts = [t.replace(SPACE, " ") if kind == 4 else t for t, kind in zip(texts, kinds)]
    return model, texts, scores, kinds, tokenizer, (2, 1, 3)


def unigram():
    model = train(620, [], model_type="unigram")
    texts, scores = pieces(model)
    kinds = [2 if i == 0 else 3 if i < 3 else 6 if text.startswith("<0x") else 1 for i, text in enumerate(texts)]
    added = [special(text) for text in ("<unk>", "<s>", "</s>")]
    tokenizer = library(texts, [], "<unk>", added, False)
    tokenizer.model = models.Unigram(list(zip(texts, scores)), unk_id=0, byte_fallback=True)
    return model, texts, scores, kinds, tokenizer, (1, 2, 0)


def family(name, made):
    model, texts, scores, kinds, tokenizer, (bos, eos, unk) = made
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    if name == "phi3":
        expected = {}
    else:
        expected = {"sentencepiece": [model.encode(text) for text in TEXTS]}
        wrong = sum(a != encode(t) for a, t in zip(expected["sentencepiece"], TEXTS))
        print(name, len(texts), "tokens,", wrong, "texts of", len(TEXTS), "differ from the library's")
    return {
        "tokens": texts, "scores": scores, "kinds": kinds, "bos": bos, "eos": eos, "unk": unk,
        "tokenizer_json": json.loads(tokenizer.to_str()),
        "library": [encode(text) for text in TEXTS + MARKED], **expected,
    }  # fmt: skip


if __name__ == "__main__":
    random.seed(0)
    made = {"llama": llama(), "gemma3": gemma(), "phi3": phi3(), "unigram": unigram()}
    out = {"texts": TEXTS + MARKED, **{name: family(name, it) for name, it in made.items()}}
    path = DATA / "pieces.json"
    path.write_text(json.dumps(out, ensure_ascii=True) + "\n")
    print(path.name, path.stat().st_size, "bytes")
