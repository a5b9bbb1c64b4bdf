"""Tests of how drafting is measured and judged, with stand-ins for both sides."""

import json
import pathlib
import subprocess
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from measure import drafting, server, workloads  # noqa: E402
from measure.process import ProgramError  # noqa: E402
from test_measure import InFolder, quiet_samples  # noqa: E402

BENCH = pathlib.Path(__file__).resolve().parents[1]
# offshoot with its command of this benchmark; every arm is {gain} times as fast as plain decoding.
OFFSHOOT = """#!{python}
import json, pathlib, sys
if sys.argv[1] == "--version":
    sys.exit(print("offshoot 0"))
def value(name):
    return sys.argv[sys.argv.index(name) + 1]
with open(pathlib.Path(__file__).parent / "commands", "a") as commands:
    print(*sys.argv[1:], file=commands)
lines = pathlib.Path(value("--workload")).read_text().splitlines()
kind = json.loads(lines[0])["kind"]
n_tokens = len(lines) * int(value("--max-tokens"))
arms = [{{"arm": arm, "tokens": n_tokens, "tokens_per_s": 100 * {gain} ** (arm != "off"),
          "tokens_per_step": 2.0, "predicted_tokens_per_step": 2.1, "ms_per_step": 5.0,
          "draft_ms_per_step": 0.1, "differences": {differences}, "accepted": {{"suffix": 7}},
          "prompt_tokens": 9 * len(lines)}} for arm in value("--arms").split(",")]
print(json.dumps({{"model": "m", "threads": 2, "step_times": [{{"rows": 1, "ms": 5.0}}],
                   "workloads": [{{"kind": kind, "arms": arms}}]}}))
"""
# The server: 128 tokens a second, of which drafting accepts a half.
SERVER = """#!{python}
import http.server, json, sys
drafts = "--spec-type" in sys.argv
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, content):
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def do_GET(self):
        self.answer({{"status": "ok"}})
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/apply-template":
            return self.answer({{"prompt": asked["messages"][0]["content"]}})
        n = asked["n_predict"]
        timings = {{"prompt_n": 9, "prompt_ms": 0.0, "predicted_n": n - {short},
                    "predicted_ms": n * 1000 / 128}}
        if drafts:
            timings.update(draft_n=n, draft_n_accepted=n // 2)
        self.answer({{"timings": timings, "content": "b" if drafts else "a"}})
    def log_message(self, *_):
        pass
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
PROMPTS = [{"name": "raw", "kind": "copy", "prompt": "text"},
           {"name": "chat", "kind": "copy", "messages": [{"role": "user", "content": "hello"}]}]


class WorkloadFiles(InFolder):
    def written(self, lines):
        path = self.folder / "workload.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    def test_the_first_prompts_are_taken(self):
        workload = workloads.read(self.written(PROMPTS), 1)
        self.assertEqual((workload.kind, workload.prompts), ("copy", (PROMPTS[0],)))

    def test_a_wrong_line_is_refused_by_name(self):
        message = {"role": "user", "content": "hello"}
        for line in ({"name": "x", "kind": "copy"}, {"name": "x", "kind": "other", "prompt": "a"},
                     {"name": "x", "kind": "copy", "prompt": "a", "messages": [message]},
                     {"name": "x", "kind": "copy", "messages": [{**message, "role": "assistant"}]},
                     {"name": "x", "kind": "copy", "messages": []}):
            with self.assertRaisesRegex(SystemExit, "workload.jsonl: x: "):
                workloads.read(self.written([line]))

    def test_two_kinds_in_one_file_are_refused(self):
        with self.assertRaisesRegex(SystemExit, "of one kind"):
            workloads.read(self.written([PROMPTS[0], {**PROMPTS[1], "kind": "chat"}]))

    def test_the_files_of_this_repository_hold_what_the_readme_says(self):
        counts = {kind: len(workloads.read(BENCH / "workloads" / f"{kind}.jsonl").prompts)
                  for kind in ("chat", "copy", "json", "translation", "adversarial")}
        self.assertEqual(counts, {"chat": 60, "copy": 24, "json": 20, "translation": 20, "adversarial": 20})


class WithServer(InFolder):
    def program(self, name, source, **values):
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(source.format(python=sys.executable, **values))
        path.chmod(0o755)
        return path


class ServerRuns(WithServer):
    def run_mode(self, mode, short=0):
        program = self.program("llama-server", SERVER, short=short)
        return server.run_workload(program, "m.gguf", 2, mode, PROMPTS, 128)

    def test_a_step_makes_one_token_and_the_accepted_ones(self):
        figures, texts = self.run_mode("ngram-mod")
        self.assertEqual((figures["tokens_per_step"], figures["tokens_per_s"]), (2.0, 128.0))
        self.assertEqual((figures["prompt_tokens"], texts), (18, ["b", "b"]))

    def test_an_answer_that_ends_early_is_an_error(self):
        with self.assertRaisesRegex(ProgramError, "made 127 tokens of 128"):
            self.run_mode("plain", short=1)

    def test_a_server_that_does_not_start_is_an_error_with_its_last_line(self):
        program = self.program("llama-server", "#!{python}\nimport sys\nsys.exit('no model')\n")
        with self.assertRaisesRegex(ProgramError, "ended with 1: no model"):
            server.run_workload(program, "m.gguf", 2, "plain", PROMPTS, 128)


class WholeRun(WithServer):
    """The command from its arguments to its table, with stand-ins for both sides."""

    def spec(self, *arguments, gain=3.0, differences=0):
        self.program("bin/llama-server", SERVER, short=0)
        offshoot = self.program("offshoot", OFFSHOOT, gain=gain, differences=differences)
        llama_cpp = {"package": "p", "commit": "c", "flags": [], "compiler": "cc"}
        (self.folder / "peers.json").write_text(
            json.dumps({"llama_cpp": llama_cpp, "pytorch": None}))
        command = [sys.executable, BENCH / "spec", "--allow-noise", "--work", self.folder, "--json",
                   self.folder / "result.json", "--rounds", "2", "--prompts", "2", "--offshoot",
                   offshoot, "--workloads", "copy,adversarial", "--modes", "ngram-mod", *arguments,
                   self.model().path]
        ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        return ended, json.loads((self.folder / "result.json").read_text())

    def test_rows_that_pass_end_with_0(self):
        ended, result = self.spec()
        self.assertEqual(ended.returncode, 0, ended.stdout + ended.stderr)
        self.assertEqual({row["what"]: row["value"] for row in result["rows"]
                          if row["what"].endswith("off")},
                         {"copy: auto over off": 3.0, "adversarial: auto over off": 3.0})
        speeds = result["samples"]["135M / copy / llama.cpp / ngram-mod / tokens_per_s"]
        self.assertEqual(speeds, [128.0, 128.0])
        self.assertEqual(
            result["samples"]["135M / copy / llama.cpp / ngram-mod / differences"], [2, 2])

    def test_an_answer_unlike_the_plain_one_fails(self):
        ended, result = self.spec(differences=1)
        failed = {row["what"] for row in result["rows"] if not row["passed"]}
        self.assertEqual((ended.returncode, failed),
                         (1, {"copy: differences", "adversarial: differences"}))

    def test_what_loses_where_nothing_can_be_won_fails(self):
        _, result = self.spec("--workloads", "adversarial", gain=0.97)
        failed = {row["what"] for row in result["rows"] if not row["passed"]}
        self.assertEqual(failed, {"adversarial: auto over off"})

    def test_peers_alone_make_no_rows(self):
        ended, result = self.spec("--peers-only")
        self.assertEqual((ended.returncode, result["rows"]), (0, []), ended.stderr)

    def test_heads_and_stores_go_to_the_model_they_are_for(self):
        for role, given in (("135M", True), ("0.5B", False)):
            ended, result = self.spec("--medusa", f"{role}={self.folder}", "--rounds", "1")
            self.assertEqual(ended.returncode, 0, ended.stdout + ended.stderr)
            self.assertEqual(result["drafts_from"], [f"{role} {self.folder.name}"])
            commands = (self.folder / "commands").read_text().splitlines()
            (self.folder / "commands").unlink()
            self.assertEqual([f"--medusa {self.folder.resolve()}" in line for line in commands],
                             [given] * len(commands))

    def test_arguments_that_name_nothing_end_with_2(self):
        for arguments, message in ((["--arms", "off,magic"], "no magic in magic; known: off"),
                                   (["--arms", "suffix+auto"], "no auto in suffix+auto"),
                                   (["--medusa", "7B=x"], "no model 7B; known: 135M"),
                                   (["--datastore", "135M=/none"], "there is no /none")):
            command = [sys.executable, str(BENCH / "spec"), *arguments, "m.gguf"]
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
            self.assertEqual(ended.returncode, 2)
            self.assertIn(message, ended.stderr)


class Rows(InFolder):
    def rows(self, samples, role="0.5B", kind="code"):
        return {row.what: row for row in
                [*drafting.speed_rows(samples, role, kind),
                 drafting.prediction_row(samples, role, kind),
                 drafting.difference_row(samples, role, kind)]}

    def filled(self, predicted=2.0):
        samples = quiet_samples()
        samples.keep(("0.5B", "code", "offshoot"), {
            ("off", "tokens_per_s"): 100, ("auto", "tokens_per_s"): 160,
            ("auto", "tokens_per_step"): 2.0, ("auto", "predicted_tokens_per_step"): predicted,
            ("off", "differences"): 0, ("auto", "differences"): 0})
        for mode, speed in (("plain", 50), ("ngram-mod", 90)):
            samples.keep(("0.5B", "code", "llama.cpp", mode), {"tokens_per_s": speed})
        return samples

    def test_the_peer_is_its_best_mode(self):
        row = self.rows(self.filled())["code: auto over llama.cpp's best"]
        self.assertEqual((row.peer, row.note), (90, "llama.cpp ngram-mod"))
        self.assertTrue(row.passed)

    def test_a_prediction_may_err_to_neither_side(self):
        for predicted, passes in ((1.7, False), (1.9, True), (2.1, True), (2.3, False)):
            row = self.rows(self.filled(predicted))["code: predicted against realised"]
            self.assertEqual(row.passed, passes, predicted)

    def test_one_differing_round_counts(self):
        samples = self.filled()
        for count in (1, 0, 0, 0):
            samples.keep(("0.5B", "code", "offshoot", "suffix"), {"differences": count})
        self.assertEqual(self.rows(samples)["code: differences"].value, 1)

    def test_what_was_not_measured_fails(self):
        self.assertEqual([row.what for row in self.rows(quiet_samples()).values() if row.passed],
                         [])


if __name__ == "__main__":
    unittest.main()
