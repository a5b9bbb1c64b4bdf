"""Tests of the measuring itself, without peers: `python3 -m unittest discover -s bench/tests`."""

import dataclasses
import json
import pathlib
import stat
import struct
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from measure import gguf, report, rows  # noqa: E402
from measure.offshoot import Offshoot  # noqa: E402
from measure.process import ProgramError, run  # noqa: E402
from measure.samples import Samples  # noqa: E402

# A program with offshoot's two commands. It sleeps a tenth of a second, and a hundredth a token.
STAND_IN = '''#!{python}
import json, sys, time
arguments = sys.argv[1:]
if arguments[0] == "--version":
    print("offshoot 0")
elif arguments[0] == "bench":
    print(json.dumps({bench}))
else:
    n_tokens = int(arguments[arguments.index("--max-tokens") + 1])
    time.sleep(0.1)
    for _ in range(min(n_tokens, {n_tokens_max})):
        print("one ", end="", flush=True)
        time.sleep(0.01)
'''
BENCH = {"prompt_tokens_per_s": 3000, "decode_tokens_per_s": 300, "step_bytes": 100_000_000,
         "kv_bytes": 1_000_000, "read_bandwidth_gb_s": 30.0,
         "steps": [{"tokens": k, "ms": ms} for k, ms in ((1, 4.0), (4, 5.0), (8, 8.0), (16, 10.0))]}


def text(string):
    return struct.pack("<Q", len(string)) + string.encode()


def number_entry(key, value):
    return text(key) + struct.pack("<II", 4, value)


def tensor_entry(name, offset):
    return text(name) + struct.pack("<IQQIQ", 2, 8, 8, 0, offset)


def small_gguf(tensors):
    """A file of the 135M model's width with `tensors` of 256 bytes each."""
    entries = [text("general.architecture") + struct.pack("<I", 8) + text("llama"),
               number_entry("llama.embedding_length", 576), number_entry("llama.block_count", 30),
               number_entry("llama.attention.head_count", 9),
               number_entry("llama.attention.head_count_kv", 3),
               text("tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("bc")]
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries)) + b"".join(entries)
    header += b"".join(tensor_entry(name, 256 * i) for i, name in enumerate(tensors))
    return header + bytes(-len(header) % 32) + bytes(256 * len(tensors))


def quiet_samples():
    return Samples(say=lambda text: None, needs_quiet=False)


class InFolder(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def model(self, tensors=("token_embd.weight", "output.weight")):
        path = self.folder / "model.gguf"
        path.write_bytes(small_gguf(tensors))
        return gguf.read_model(path, rows.ROLES)

    def stand_in(self, bench=None, n_tokens_max=10_000):
        path = self.folder / "offshoot"
        source = STAND_IN.format(python=sys.executable, bench=bench or BENCH,
                                 n_tokens_max=n_tokens_max)
        path.write_text(source)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        offshoot = Offshoot(str(path), 2)
        self.addCleanup(offshoot.home.cleanup)
        return offshoot


class ModelFiles(InFolder):
    def test_an_untied_embedding_is_not_read_by_a_step(self):
        self.assertEqual(self.model().step_bytes, 256)

    def test_a_tied_embedding_is_read_by_a_step(self):
        self.assertEqual(self.model(("token_embd.weight", "norm")).step_bytes, 512)

    def test_keys_and_values_are_counted(self):
        self.assertEqual(self.model().kv_bytes_per_token_bf16, 2 * 2 * 30 * 3 * 64)

    def test_a_broken_file_is_one_line(self):
        path = self.folder / "model.gguf"
        for data in (b"", b"GGML", small_gguf(["a"])[:60]):
            path.write_bytes(data)
            with self.assertRaisesRegex(SystemExit, "model.gguf: "):
                gguf.read_model(path, rows.ROLES)

    def test_a_model_without_targets_is_refused(self):
        with self.assertRaisesRegex(SystemExit, "no targets for llama of width 576"):
            self.model()
            gguf.read_model(self.folder / "model.gguf", {("llama", 577): "other"})


class Programs(InFolder):
    def test_the_first_byte_comes_before_the_end(self):
        finished = run([sys.executable, "-uc", "import time; print(1); time.sleep(1)"])
        self.assertLess(finished.first_byte_s, finished.wall_s - 0.5)

    def test_the_peak_is_that_of_the_child(self):
        finished = run([sys.executable, "-c", "x = b'1' * 200_000_000"])
        self.assertGreater(finished.peak_rss_bytes, 200_000_000)
        self.assertLess(finished.peak_rss_bytes, 300_000_000)

    def test_a_failure_carries_its_last_line(self):
        with self.assertRaisesRegex(ProgramError, "ended with 1: no such model"):
            run([sys.executable, "-c", "import sys; sys.exit('no such model')"])

    def test_decode_by_the_wall_is_128_tokens_over_their_time(self):
        tokens_per_s = self.stand_in().decode_wall(self.model())
        self.assertGreater(tokens_per_s, 5)  # on a busy machine
        self.assertLess(tokens_per_s, 101)  # a sleep is never shorter than asked for

    def test_an_answer_that_ends_early_is_not_timed(self):
        with self.assertRaisesRegex(ProgramError, "stops before 129 tokens"):
            self.stand_in(n_tokens_max=100).decode_wall(self.model())

    def test_a_missing_figure_is_named(self):
        bench = {key: value for key, value in BENCH.items() if key != "kv_bytes"}
        with self.assertRaisesRegex(ProgramError, "lacks kv_bytes"):
            self.stand_in(bench).bench(self.model())

    def test_steps_are_keyed_by_number(self):
        self.assertEqual(self.stand_in().bench(self.model())["step_ms"][16], 10.0)


LLAMA_BENCH = """#!{python}
import json, sys
arguments = sys.argv[1:]
prompts = arguments[arguments.index("-p") + 1].split(",")
tests = [{{"n_prompt": int(k), "flash_attn": flash, "avg_ts": 500 + flash,
           "samples_ns": [int(k) * 1_000_000] * 3}} for k in prompts for flash in (0, 1)]
if arguments[arguments.index("-n") + 1] != "0":
    tests += [{{**test, "n_prompt": 0, "avg_ts": 100 - test["flash_attn"]}} for test in tests]
print(json.dumps(tests))
"""
LLAMA_COMPLETION = """#!{python}
import sys, time
time.sleep(0.1 + 0.003 * int(sys.argv[sys.argv.index("-n") + 1]))
print("text")
"""
LLAMA_QUANTIZE = """#!{python}
import pathlib, sys
pathlib.Path(sys.argv[-3]).touch()
"""
READ_BANDWIDTH = """#!{python}
print(30.0)
"""


class WholeRun(InFolder):
    """The command from its arguments to its table, with stand-ins for all programs."""

    def speed(self, *arguments):
        (self.folder / "bin").mkdir()
        for name, source in (("llama-bench", LLAMA_BENCH), ("llama-completion", LLAMA_COMPLETION),
                             ("llama-quantize", LLAMA_QUANTIZE),
                             ("read-bandwidth", READ_BANDWIDTH)):
            path = self.folder / "bin" / name
            path.write_text(source.format(python=sys.executable))
            path.chmod(0o755)
        llama_cpp = {"package": "p", "commit": "c", "flags": [], "compiler": "cc"}
        record = {"llama_cpp": llama_cpp, "pytorch": None}
        (self.folder / "peers.json").write_text(json.dumps(record))
        command = [sys.executable, pathlib.Path(__file__).parents[1] / "speed", "--allow-noise",
                   "--work", self.folder, "--json", self.folder / "result.json", "--rounds", "2",
                   *arguments, self.model().path]
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)

    def test_a_row_without_its_peer_fails_the_run_and_the_rest_are_judged(self):
        ended = self.speed("--offshoot", self.stand_in().path)
        verdicts = {row["what"]: row["passed"] for row in self.result()["rows"]}
        self.assertEqual(ended.returncode, 1, ended.stderr)
        failed = {what for what, passed in verdicts.items() if not passed}
        # These two hang on the clock of a machine that may be busy.
        failed -= {"first token, empty cache", "first token, packed cache"}
        self.assertEqual(failed, {"prompt of 512", "step of 8 over one", "decode, by the wall"})
        self.assertIn("first token, empty cache", verdicts)
        self.assertIn("| PASS |", ended.stdout)

    def test_peers_alone_make_no_rows(self):
        ended = self.speed("--peers-only")
        self.assertEqual((ended.returncode, self.result()["rows"]), (0, []), ended.stderr)
        steps = self.result()["samples"]["135M / llama.cpp / step_ms / 16 / with flash attention"]
        self.assertEqual(steps, [16.0, 16.0])

    def result(self):
        return json.loads((self.folder / "result.json").read_text())


class Figures(InFolder):
    def filled(self):
        samples = quiet_samples()
        samples.keep(("135M", "offshoot", "bench", "decode_tokens_per_s"), 300)
        for way, value in (("off", 100), ("on", 120), ("off", 110), ("on", 90)):
            samples.keep(("135M", "llama.cpp", "same file"), {("decode", way): value})
        samples.keep(("135M", "llama.cpp", "requantised", "Q4_0", "decode", "off"), 140)
        return samples

    def row(self, samples, what, model=None):
        found = [row for row in rows.all_rows(samples, [model or self.model()]) if row.what == what]
        self.assertEqual(len(found), 1)
        return found[0]

    def test_the_peer_is_its_best_way_by_the_medians(self):
        row = self.row(self.filled(), "decode")
        self.assertEqual((row.peer, row.value), (105, 300 / 105))
        self.assertTrue(row.passed)

    def test_a_requantised_peer_is_another_row(self):
        self.assertEqual(self.row(self.filled(), "decode, peer requantised").peer, 140)

    def test_where_there_is_avx2_alone_less_is_asked(self):
        every = rows.all_rows(self.filled(), [self.model()], avx2=True)
        asked = {row.what: row.target for row in every}
        self.assertEqual(asked, {"decode": 1.0, "decode, by the wall": 1.0,
                                 "decode, peer requantised": 1.0,
                                 "prompt of 512, peer's best file": 1.3})
        passed = {row.what for row in every if row.passed}
        self.assertEqual(passed, {"decode", "decode, peer requantised"})

    def test_what_was_not_measured_fails(self):
        every = rows.all_rows(quiet_samples(), [self.model()])
        self.assertEqual([row.what for row in every if row.passed], [])
        self.assertIn("FAIL", report.table(every))

    def test_a_step_is_held_against_our_own_one(self):
        samples = quiet_samples()
        samples.keep(("135M", "offshoot", "bench", "step_ms"), {1: 4.0, 4: 5.0, 8: 8.0, 16: 10.0})
        self.assertTrue(self.row(samples, "step of 4 over one").passed)
        self.assertFalse(self.row(samples, "step of 8 over one").passed)

    def test_the_smaller_bytes_and_the_greater_bandwidth_count(self):
        model = dataclasses.replace(self.model(), role="0.5B", step_bytes=80_000_000)
        samples = quiet_samples()
        for key, value in BENCH.items():
            samples.keep(("0.5B", "offshoot", "bench"), {key: value})
        samples.keep(("0.5B", "offshoot", "bench", "step_ms", 1), 4.0)
        samples.keep(("machine", "read_bandwidth_gb_s"), 40.0)
        row = self.row(samples, "read rate of a step", model)
        self.assertAlmostEqual(row.value, 81e6 / 4e-3 / 40e9)

    def test_an_error_is_kept_and_not_repeated(self):
        samples, calls = quiet_samples(), []

        def broken():
            calls.append(1)
            raise ProgramError("no")

        samples.take(("a",), broken)
        samples.take(("a",), broken)
        self.assertEqual((len(calls), samples.errors), (1, {("a",): "no"}))

    def test_the_result_is_json(self):
        samples, path = self.filled(), self.folder / "deep" / "result.json"
        report.write_json(path, {"rounds": 1}, samples, rows.all_rows(samples, [self.model()]))
        result = json.loads(path.read_text())
        self.assertEqual(result["samples"]["135M / llama.cpp / same file / decode / on"], [120, 90])
        self.assertEqual(sum(row["passed"] for row in result["rows"]), 2)


if __name__ == "__main__":
    unittest.main()
