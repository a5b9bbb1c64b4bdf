"""The programs that offshoot is compared with. Each function runs one once and returns figures."""

import json
import pathlib
import statistics

from measure.process import ProgramError, run
from measure.prompts import LONG_PROMPT, N_CONTEXT, N_DECODED, PROMPT

FLASH_ATTENTION = ("off", "on")
# What llama.cpp can make of a file of four-bit blocks that it reads faster than the original.
REQUANTISED = ("Q4_0", "IQ4_NL")
STEPS = (1, 4, 8, 16)
DEPTH = 512


class Peers:
    """The programs that bench/peers/build made in `work`."""

    def __init__(self, work, threads):
        self.work, self.threads = pathlib.Path(work), threads
        record = self.work / "peers.json"
        if not record.is_file():
            raise SystemExit(f"bench: no {record}; run bench/peers/build --work {self.work}")
        self.record = json.loads(record.read_text())

    def program(self, name):
        return self.work / "bin" / name

    def requantised(self, model):
        """Files that llama-quantize made from `model`, all tensors of one format; kept."""
        folder = self.work / "requantised"
        folder.mkdir(exist_ok=True)
        made = {}
        for kind in REQUANTISED:
            target = folder / f"{model.path.stem}.{model.file_bytes}.{kind}.gguf"
            if not target.is_file():
                part = target.with_suffix(".part")
                run([self.program("llama-quantize"), "--allow-requantize", "--pure",
                     model.path, part, kind, self.threads])
                part.rename(target)
            made[kind] = target
        return made

    def read_bandwidth_gb_s(self):
        """Gigabytes a second that all threads together read from memory."""
        return float(run([self.program("read-bandwidth"), self.threads]).output)

    def llama_bench(self, path, *arguments):
        """The tests of one run of llama-bench; each holds its samples in nanoseconds."""
        command = [self.program("llama-bench"), "-m", path, "-t", self.threads, "-o", "json"]
        return json.loads(run([*command, *arguments]).output)

    def speeds(self, path):
        """Tokens a second by (`prompt` or `decode`, flash attention or not)."""
        tests = self.llama_bench(path, "-p", 512, "-n", N_DECODED, "-r", 1, "-fa",
                                 ",".join(FLASH_ATTENTION))
        return {("prompt" if test["n_prompt"] else "decode", flash_attention(test)):
                test["avg_ts"] for test in tests}

    def step_ms(self, path):
        """Milliseconds by (number of new tokens on a context of 512, flash attention)."""
        tests = self.llama_bench(path, "-p", ",".join(map(str, STEPS)), "-n", 0, "-d", DEPTH,
                                 "-r", 7, "-fa", ",".join(FLASH_ATTENTION))
        return {(test["n_prompt"], flash_attention(test)):
                statistics.median(test["samples_ns"]) * 1e-6 for test in tests}

    def complete(self, path, prompt, n_tokens):
        """One run of llama-completion, greedy, which does not stop at an end token."""
        return run([self.program("llama-completion"), "-m", path, "-t", self.threads, "-p", prompt,
                    "-n", n_tokens, "-c", N_CONTEXT, "--temp", 0, "--ignore-eos", "-no-cnv",
                    "--no-display-prompt"])

    def decode_wall(self, path):
        """Tokens a second by the clock on the wall: what 128 more tokens cost."""
        short, long = (self.complete(path, PROMPT, n) for n in (1, 1 + N_DECODED))
        return N_DECODED / (long.wall_s - short.wall_s)

    def first_token_s(self, path):
        """Seconds from the start of the program to its first byte of text."""
        return self.complete(path, PROMPT, 1).first_byte_s

    def peak_bytes(self, path):
        """Most memory held when reading a full context."""
        return self.complete(path, LONG_PROMPT, 32).peak_rss_bytes

    def pytorch_prompt(self, path):
        """Tokens a second of a prompt of 512, by `bf16` and `f32`; nothing without PyTorch."""
        pytorch = self.record["pytorch"]
        if pytorch is None:
            return {}
        script = pathlib.Path(__file__).parents[1] / "peers" / "prompt_pytorch.py"
        output = run([pytorch["python"], script, path, "--threads", self.threads]).output
        try:
            return json.loads(output.splitlines()[-1])
        except (IndexError, ValueError) as error:
            raise ProgramError(f"{script} did not end with its figures") from error


def flash_attention(test):
    """The setting of a test in words; llama-bench writes 0 or 1."""
    return "with flash attention" if int(test["flash_attn"]) == 1 else "without flash attention"
