"""Tests of what bench/draft_heads concludes: `python3 -m unittest discover -s bench/tests`."""

import importlib.machinery
import importlib.util
import json
import pathlib
import sys
import types
import unittest

BENCH = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(BENCH))

from measure.process import ProgramError  # noqa: E402


def script():
    loader = importlib.machinery.SourceFileLoader("draft_heads", str(BENCH / "draft_heads"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("draft_heads", loader))
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    loader.exec_module(module)
    sys.dont_write_bytecode = before
    return module


def one(**changes):
    return {"tokens": 10, "top_1": [0.5, 0.25], "top_3": [0.75, 0.5], "tree_tokens_per_step": 1.5,
            "tokens_per_step": 1.25, "over_plain": 1.1, "loss": 2.0, "seconds": 60,
            "peak_rss_bytes": 2e6, **changes}


class DraftHeads(unittest.TestCase):
    def test_a_way_is_the_mean_of_its_seeds(self):
        cells = script().line("x", [one(), one(top_1=[0.7, 0.25], loss=3.0)])
        self.assertEqual(cells, ("x", "2", "10", "60.0 25.0", "75.0 50.0", "1.500", "1.250", "1.10",
                                 "2.500", "1.0", "2"))
        self.assertEqual(len(cells), len(script().HEADING))

    def test_runs_of_other_budgets_are_no_comparison(self):
        self.assertTrue(script().same_budget([one(), one()]))
        self.assertFalse(script().same_budget([one(), one(tokens=11)]))

    def test_the_last_evaluation_counts_and_must_be_of_the_last_step(self):
        metrics = {"loss": 1.0, "draft_1_top_1": 0.5, "draft_1_top_3": 0.6}
        step = {"event": "step", "step": 4, "tokens_total": 90}
        first = {"event": "eval", "step": 2, "metrics": {**metrics, "loss": 3.0}}
        last = {"event": "eval", "step": 4, "metrics": metrics}
        options = types.SimpleNamespace(heads=1)
        told = script().of_log("\n".join(map(json.dumps, [first, step, last])), options)
        self.assertEqual(told, {"tokens": 90, "loss": 1.0, "top_1": [0.5], "top_3": [0.6]})
        with self.assertRaises(ProgramError):
            script().of_log("\n".join(map(json.dumps, [first, step])), options)

    def test_prompts_are_the_same_and_no_two_alike(self):
        some = script().questions(50)
        self.assertEqual(some, script().questions(60)[:50])
        self.assertEqual(len(set(some)), 50)


if __name__ == "__main__":
    unittest.main()
