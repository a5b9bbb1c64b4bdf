"""Tuning: batches that both sides are given, and what a step costs either."""

import json
import pathlib
import statistics

from measure.process import ProgramError, run
from measure.rows import Row, quotient

HERE = pathlib.Path(__file__).resolve().parent
TEXT = HERE.parents[1] / "crates/offshoot-engine/tests/data/text.txt"
PEER = HERE.parent / "peers/tuning_pytorch.py"
ROWS, WIDTH = 16, 64
# Steps of a process: those that warm up, and those that count.
WARM, COUNTED = 1, 3
MODEL = "135M"


def words_of(path):
    words = path.read_text().split()
    if len(words) < 60 * ROWS:
        raise SystemExit(f"bench: {path} is too short")
    return words


def write_rows(folder):
    """Two files of 16 rows: texts that are longer than a row, and sentences with a label."""
    words = words_of(TEXT)
    texts, labelled = folder / "texts.jsonl", folder / "labelled.jsonl"
    texts.write_text("".join(
        json.dumps({"text": " ".join(words[60 * i:60 * (i + 1)])}) + "\n" for i in range(ROWS)))
    labelled.write_text("".join(
        json.dumps({"sentence": " ".join(words[40 * i:40 * (i + 1)]), "label": i % 2}) + "\n"
        for i in range(ROWS)))
    return texts, labelled


class Ours:
    """offshoot, tuning `model`, a GGUF file of single precision."""

    def __init__(self, program, threads, model, folder):
        self.program, self.threads, self.model, self.folder = program, threads, model, folder

    def environment(self):
        return {"OFFSHOOT_HOME": str(self.folder), "XDG_CACHE_HOME": str(self.folder),
                "OFFSHOOT_OFFLINE": "1"}

    def rows(self, data, flags):
        """The rows of `data` as tokens, in the form that the peer reads."""
        rows = []
        for row in range(1, ROWS + 1):
            command = [self.program, "data", "show", data, "--model", self.model, "--row", row,
                       "--json", "--max-length", WIDTH, *flags]
            shown = json.loads(run(command, self.environment()).output)
            rows += [as_peer_row(example) for example in shown["examples"]]
        if len(rows) != ROWS:
            raise ProgramError(f"{len(rows)} examples of {ROWS} rows")
        return rows

    def timed(self, event, data, flags):
        """Seconds of the counted ones of such events, one a step, and the peak of memory, of one run."""
        output = self.folder / "run"
        remove(output)
        command = [self.program, "tune", self.model, "--data", data, "--steps", WARM + COUNTED,
                   "--batch", ROWS, "--max-length", WIDTH, "--threads", self.threads,
                   "--save-every", WARM + COUNTED, "--output", output, *flags]
        result = run(command, self.environment())
        lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
        seconds = [line["seconds"] for line in lines if line["event"] == event]
        if len(seconds) != WARM + COUNTED:
            raise ProgramError(f"a log with {event} {len(seconds)} times")
        return {"step_s": statistics.median(seconds[WARM:]), "peak": result.peak_rss_bytes}

    def tune(self, data, flags):
        return self.timed("step", data, flags)

    def forward(self, data, flags):
        """Seconds of scoring the rows as a step does, whole batches through the same forward pass."""
        return self.timed("eval", data, (*flags, "--eval-data", data, "--eval-every", 1))

    def evaluate(self, data, flags):
        """The peak of memory of scoring the rows."""
        command = [self.program, "eval", self.model, "--data", data, "--batch", ROWS, "--json",
                   "--max-length", WIDTH, "--threads", self.threads, *flags]
        result = run(command, self.environment())
        return {"peak": result.peak_rss_bytes}


def remove(folder):
    for path in sorted(folder.rglob("*"), reverse=True) if folder.exists() else []:
        path.rmdir() if path.is_dir() else path.unlink()
    if folder.exists():
        folder.rmdir()


def as_peer_row(example):
    """A text as it is; of a choice each candidate behind the prompt."""
    first, *others = (
        {"tokens": [token["id"] for token in sequence["tokens"]],
         "trained": [token["trained"] for token in sequence["tokens"]]}
        for sequence in example["sequences"]
    )
    if example["kind"] == "text":
        return first
    length = len(first["tokens"])
    candidates = [{"tokens": first["tokens"] + other["tokens"],
                   "trained": [False] * length + [True] * len(other["tokens"])} for other in others]
    return {"candidates": candidates, "answer": example["answers"][0]}


class Pytorch:
    """PyTorch with the same file and the same tokens."""

    def __init__(self, python, threads, model, folder):
        self.python, self.threads, self.model, self.folder = python, threads, model, folder

    def batches(self, name, rows):
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps([rows]))
        return path

    def tune(self, batches, flags):
        command = [self.python, PEER, self.model, batches, "--threads", self.threads,
                   "--warmup", WARM, "--steps", COUNTED, *flags]
        figures = json.loads(run(command).output)
        return {"step_s": statistics.median(figures["seconds"]), "peak": figures["peak_bytes"]}


FULL = ("--method", "mezo", "--space", "full", "--learning-rate", "1e-6")
CHOICE = ("--task", "sst2")
CLASSIFY = (*FULL, *CHOICE, "--objective", "classification")
LORA = ("--method", "lora", "--rank", 8, "--learning-rate", "1e-4")

# By name: ours, and the peer's flags. The data is `labelled` where the name says so.
RUNS = {
    "mezo f32": (FULL, ("--method", "mezo")),
    "mezo bf16": ((*FULL, "--bfloat16"), ("--method", "mezo", "--dtype", "bf16")),
    "mezo labelled": (CLASSIFY, ("--method", "mezo")),
    "lora checkpointed": ((*LORA, "--gradient-checkpointing", "true"),
                          ("--method", "lora", "--checkpointing")),
    "lora": ((*LORA, "--gradient-checkpointing", "false"), ("--method", "lora")),
}
# What is reported beside, without a target.
BESIDE = {"mezo f32 tuned": ("--method", "mezo-tuned"), "forward f32": ("--method", "forward"),
          "forward bf16": ("--method", "forward", "--dtype", "bf16")}


def measure(samples, ours, peer, folder, rounds, say):
    """Takes all samples, in turns."""
    texts, labelled = write_rows(folder)
    data = {"texts": texts, "labelled": labelled}
    batches = {"texts": peer.batches("texts", ours.rows(texts, ())),
               "labelled": peer.batches("labelled", ours.rows(labelled, CHOICE))}
    for turn in range(rounds):
        say(f"round {turn + 1} of {rounds}")
        for name, (flags, peer_flags) in RUNS.items():
            kind = "labelled" if name.endswith("labelled") else "texts"
            pair = [
                lambda: samples.take(("offshoot", name), lambda: ours.tune(data[kind], flags)),
                lambda: samples.take(("pytorch", name),
                                     lambda: peer.tune(batches[kind], peer_flags)),
            ]
            for one in pair if turn % 2 == 0 else reversed(pair):
                one()
        samples.take(("offshoot", "forward f32"), lambda: ours.forward(texts, FULL))
        samples.take(("offshoot", "eval f32"), lambda: ours.evaluate(texts, ()))
        for name, flags in BESIDE.items():
            samples.take(("pytorch", name), lambda: peer.tune(batches["texts"], flags))


def all_rows(samples, weight_bytes):
    """The rows of the table."""
    def median(who, name, what):
        return samples.median(who, name, what)

    def time(what, name, target):
        ours, peer = median("offshoot", name, "step_s"), median("pytorch", name, "step_s")
        return Row(MODEL, what, "s", ours, peer, quotient(ours, peer), "<=", target, "PyTorch")

    def megabytes(value):
        return None if value is None else value * 1e-6

    def memory(what, name, target):
        ours, peer = median("offshoot", name, "peak"), median("pytorch", name, "peak")
        return Row(MODEL, what, "MB", megabytes(ours), megabytes(peer), quotient(ours, peer), "<=",
                   target, "PyTorch")

    step, forward = (median("offshoot", n, "step_s") for n in ("mezo f32", "forward f32"))
    peak, still = (median("offshoot", n, "peak") for n in ("mezo f32", "eval f32"))
    twice = None if forward is None else 2 * forward
    return [
        time("MeZO step, f32", "mezo f32", 0.5),
        time("MeZO step, bf16 products", "mezo bf16", 0.4),
        time("MeZO step, two candidates", "mezo labelled", 0.25),
        Row(MODEL, "MeZO step over two forwards", "s", step, twice, quotient(step, twice), "<=",
            1.12, "a run's evaluation, twice"),
        Row(MODEL, "peak of a MeZO step over eval", "MB", megabytes(peak), megabytes(still),
            quotient(peak, still), "<=", 1.05, "offshoot eval"),
        Row(MODEL, "peak of eval over weights", "MB", megabytes(still), megabytes(weight_bytes),
            quotient(still, weight_bytes), "<=", 1.25, "bytes of the weights"),
        memory("peak of a MeZO step", "mezo f32", 0.5),
        time("LoRA step, checkpointed", "lora checkpointed", 1.1),
        time("LoRA step", "lora", 1.1),
        memory("peak of LoRA, checkpointed", "lora checkpointed", 0.7),
    ]


def beside(samples):
    """What has no target, a line each."""
    lines = []
    for name in BESIDE:
        seconds, peak = (samples.median("pytorch", name, what) for what in ("step_s", "peak"))
        if seconds is not None:
            lines.append(f"PyTorch, {name}: {seconds:.2f} s, {peak * 1e-6:.0f} MB")
    return "\n".join(lines)
