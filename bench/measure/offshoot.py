"""offshoot's own side: its `bench` command, and its `run` command watched from outside."""

import json
import pathlib
import shutil
import tempfile

from measure.process import ProgramError, run
from measure.prompts import LONG_PROMPT, N_CONTEXT, N_DECODED, PROMPT

FIELDS = ("prompt_tokens_per_s", "decode_tokens_per_s", "steps", "step_bytes", "kv_bytes",
          "read_bandwidth_gb_s")
ARM_FIELDS = ("tokens", "tokens_per_s", "tokens_per_step", "ms_per_step", "differences")
SPEC_LIMIT_S = 6 * 3600


class Offshoot:
    """The `offshoot` program at `path`, with packed weights kept in a folder of this run.

    `drafting` is what to draft from: (role of the model, flag, path).
    """

    def __init__(self, path, threads, drafting=()):
        found = shutil.which(path)
        if found is None:
            raise SystemExit(f"bench: {path} is no program; cargo build --release makes it, "
                             "and --offshoot says where it is")
        self.path, self.threads = pathlib.Path(found).resolve(), threads
        self.drafting = drafting
        # The instruction set that the last `bench` ran on.
        self.isa = None
        self.lengths_checked = set()
        self.home = tempfile.TemporaryDirectory(prefix="offshoot-bench-")

    def environment(self, cache):
        """An environment in which all that offshoot keeps is in `cache`."""
        return {"OFFSHOOT_HOME": str(cache), "XDG_CACHE_HOME": str(cache), "OFFSHOOT_OFFLINE": "1"}

    def version(self):
        return run([self.path, "--version"]).output.decode().strip()

    def bench(self, model):
        """The figures that `offshoot bench MODEL --json` measures."""
        command = [self.path, "bench", model.path, "--json", "--threads", self.threads]
        output = run(command, self.environment(self.home.name)).output
        try:
            figures = json.loads(output)
            missing = [field for field in FIELDS if field not in figures]
        except (ValueError, TypeError) as error:
            raise ProgramError("offshoot bench --json printed something else than JSON") from error
        if missing:
            raise ProgramError(f"offshoot bench --json lacks {', '.join(missing)}")
        self.isa = figures.get("isa")
        figures["step_ms"] = {step["tokens"]: step["ms"] for step in figures["steps"]}
        return figures

    def spec(self, model, file, n_prompts, arms, n_tokens):
        """The arms of one pass over the workload in `file`, by name, and milliseconds by rows.

        What ships with offshoot and what the user keeps is found where it is: nothing is moved.
        """
        command = [self.path, "bench", model.path, "--spec", "--workload", file, "--arms",
                   ",".join(arms), "--max-tokens", n_tokens, "--rounds", 1, "--json", "--threads",
                   self.threads]
        for role, flag, path in self.drafting:
            command += [flag, path] if role == model.role else []
        output = run(command, {"OFFSHOOT_OFFLINE": "1"}, SPEC_LIMIT_S).output
        try:
            result = json.loads(output)
            found = {arm["arm"]: arm for arm in result["workloads"][0]["arms"]}
            step_ms = {step["rows"]: step["ms"] for step in result["step_times"]}
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise ProgramError("offshoot bench --spec printed something else than its JSON "
                               f"({error!r})") from error
        for name in ("off", "auto"):
            if name not in found:
                raise ProgramError(f"offshoot bench --spec lacks the arm {name}")
        for name, arm in found.items():
            check_arm(name, arm, n_prompts * n_tokens)
        return found, step_ms

    def complete(self, model, prompt, n_tokens, cache=None, spec="off"):
        """One run of `offshoot run`, greedy, on a context of 2048. What users wait for and hold in
        memory is taken with drafting as it is by default; tokens a second without."""
        command = [self.path, "run", model.path, prompt, "--max-tokens", n_tokens,
                   "--temperature", 0, "--ignore-eos", "--spec", spec, "--threads", self.threads,
                   "--ctx-size", N_CONTEXT]
        return run(command, self.environment(cache or self.home.name))

    def first_token_s(self, model, is_packed):
        """Seconds from the start of the program to its first byte of text."""
        if is_packed:
            self.complete(model, PROMPT, 1, spec="auto")
            return first_byte_s(self.complete(model, PROMPT, 1, spec="auto"))
        with tempfile.TemporaryDirectory(prefix="offshoot-bench-") as cache:
            return first_byte_s(self.complete(model, PROMPT, 1, cache, "auto"))

    def decode_wall(self, model):
        """Tokens a second by the clock on the wall: what 128 more tokens cost."""
        if model not in self.lengths_checked:
            self.check_length(model)
        short = self.complete(model, PROMPT, 1)
        long = self.complete(model, PROMPT, 1 + N_DECODED)
        return N_DECODED / (long.wall_s - short.wall_s)

    def check_length(self, model):
        """That the answer goes on after the tokens that are timed; otherwise fewer were made."""
        timed = self.complete(model, PROMPT, 1 + N_DECODED).output.rstrip()
        longer = self.complete(model, PROMPT, 17 + N_DECODED).output.rstrip()
        if len(longer) <= len(timed):
            raise ProgramError(f"{model.path.name} stops before {1 + N_DECODED} tokens")
        self.lengths_checked.add(model)

    def peak_bytes(self, model):
        """Most memory held while packing, and with packed weights, reading a full context."""
        with tempfile.TemporaryDirectory(prefix="offshoot-bench-") as cache:
            return max(self.complete(model, LONG_PROMPT, 32, cache, "auto").peak_rss_bytes
                       for _ in ("packing", "packed"))


def check_arm(name, arm, n_tokens):
    """That an arm has its figures and made all tokens; one that stopped early did other work."""
    missing = [field for field in ARM_FIELDS if field not in arm]
    if name != "off" and "predicted_tokens_per_step" not in arm:
        missing.append("predicted_tokens_per_step")
    if missing:
        raise ProgramError(f"offshoot bench --spec lacks {', '.join(missing)} of {name}")
    if arm["tokens"] != n_tokens:
        raise ProgramError(f"offshoot's arm {name} made {arm['tokens']} tokens of {n_tokens}")


def first_byte_s(finished):
    if finished.first_byte_s is None:
        raise ProgramError("offshoot run printed nothing")
    return finished.first_byte_s
