"""llama.cpp's server on the loopback: the one program of it that has all ways of drafting.

A server is started for one pass over one workload and ended after it, because some of its ways of
drafting keep what they saw: asked the same a second time, they would only repeat their answers.
"""

import json
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

from measure.process import ProgramError

START_LIMIT_S = 120
ANSWER_LIMIT_S = 600
N_CONTEXT = 2048

# Plain, and every way of drafting without a second model, as its defaults have it. Those defaults
# wait for twelve or more equal tokens, which is late in an answer of 128. Two ways that gain by it
# have a second setting, found by trying some on `copy`: it is there in the peer's favour.
MODES = {
    "plain": (),
    "ngram-cache": ("--spec-type", "ngram-cache"),
    "ngram-simple": ("--spec-type", "ngram-simple"),
    "ngram-map-k": ("--spec-type", "ngram-map-k"),
    "ngram-map-k4v": ("--spec-type", "ngram-map-k4v"),
    "ngram-mod": ("--spec-type", "ngram-mod"),
    "ngram-simple tuned": ("--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", "4",
                           "--spec-ngram-simple-size-m", "32"),
    "ngram-mod tuned": ("--spec-type", "ngram-mod", "--spec-ngram-mod-n-match", "8",
                        "--spec-ngram-mod-n-min", "4", "--spec-ngram-mod-n-max", "48"),
}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """A running server; leaving the context ends it."""

    def __init__(self, program, model, threads, mode):
        self.url = f"http://127.0.0.1:{free_port()}"
        port = self.url.rpartition(":")[2]
        self.command = [str(program), "-m", str(model), "-t", str(threads), "-tb", str(threads),
                        "-c", str(N_CONTEXT), "-np", "1", "--cache-ram", "0", "--jinja",
                        "--host", "127.0.0.1", "--port", port, *MODES[mode]]

    def __enter__(self):
        self.log = tempfile.TemporaryFile()
        try:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL,
                                            stdout=self.log, stderr=self.log)
        except OSError as error:
            self.log.close()
            raise ProgramError(f"cannot run {self.command[0]}: {error.strerror}") from error
        try:
            self.wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()

    def wait_until_ready(self):
        end = time.monotonic() + START_LIMIT_S
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise ProgramError(f"{self.command[0]} ended with {self.process.returncode}: "
                                   f"{self.last_line()}")
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        raise ProgramError(f"{self.command[0]} is not ready after {START_LIMIT_S} s")

    def last_line(self):
        self.log.seek(0)
        lines = self.log.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "(silent)"

    def post(self, path, content):
        request = urllib.request.Request(self.url + path, json.dumps(content).encode(),
                                         {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_LIMIT_S) as answer:
                return json.loads(answer.read())
        except (OSError, ValueError) as error:
            raise ProgramError(f"{self.command[0]}: {path}: {error}") from error

    def text_of(self, prompt):
        """What the model is given: the prompt as it stands, or the messages in its template."""
        if "prompt" in prompt:
            return prompt["prompt"]
        return self.post("/apply-template", {"messages": prompt["messages"]})["prompt"]

    def complete(self, text, n_tokens):
        """Goes on greedily for `n_tokens`; its figures, the wall's, and the text.

        The only sampler is a choice of the single best, the cheapest there is. The prompt is always
        read anew.
        """
        begin = time.perf_counter()
        answer = self.post("/completion", {
            "prompt": text, "n_predict": n_tokens, "ignore_eos": True, "cache_prompt": False,
            "temperature": 0, "samplers": ["top_k"], "top_k": 1,
        })
        wall_s = time.perf_counter() - begin
        timings = answer["timings"]
        if timings["predicted_n"] != n_tokens:
            raise ProgramError(f"{self.command[0]} made {timings['predicted_n']} tokens of "
                               f"{n_tokens}")
        return {
            "prompt_tokens": timings["prompt_n"],
            "tokens": n_tokens,
            "decode_s": timings["predicted_ms"] * 1e-3,
            "wall_s": wall_s - timings["prompt_ms"] * 1e-3,
            "drafted": timings.get("draft_n", 0),
            "accepted": timings.get("draft_n_accepted", 0),
            "text": answer["content"],
        }


def run_workload(program, model, threads, mode, prompts, n_tokens):
    """One pass of one mode: the figures, and the texts for whoever compares them."""
    with Server(program, model, threads, mode) as server:
        texts = [server.text_of(prompt) for prompt in prompts]
        answers = [server.complete(text, n_tokens) for text in texts]
    return figures(answers), [answer["text"] for answer in answers]


def figures(answers):
    """Sums over a workload. A step makes one token and what was accepted before it."""
    total = {key: sum(answer[key] for answer in answers)
             for key in ("prompt_tokens", "tokens", "decode_s", "wall_s", "drafted", "accepted")}
    steps = total["tokens"] - total["accepted"]
    return {
        "prompt_tokens": total["prompt_tokens"],
        "tokens": total["tokens"],
        "tokens_per_s": total["tokens"] / total["decode_s"],
        "wall_tokens_per_s": total["tokens"] / total["wall_s"],
        "tokens_per_step": total["tokens"] / steps,
        "ms_per_step": 1e3 * total["decode_s"] / steps,
        "drafted": total["drafted"],
        "accepted": total["accepted"],
    }
