"""Tests of what bench/learning concludes and draws: `python3 -m unittest discover -s bench/tests`."""

import importlib.machinery
import importlib.util
import pathlib
import sys
import unittest
import xml.etree.ElementTree

BENCH = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(BENCH))

from measure import curves  # noqa: E402


def script(name):
    loader = importlib.machinery.SourceFileLoader(name, str(BENCH / name))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    loader.exec_module(module)
    sys.dont_write_bytecode = before
    return module


def runs(*scores, seconds=60):
    return [{"macro_f1": score, "accuracy": score, "choice_loss": 1 - score, "seconds": seconds,
             "peak_rss_bytes": 2e6} for score in scores]


class Learning(unittest.TestCase):
    def test_a_method_is_its_mean_and_its_deviation(self):
        cells = script("learning").line("x", runs(0.5, 0.6, 0.7))
        self.assertEqual(cells, ("x", "3", "0.600", "0.100", "0.500 to 0.700", "0.600", "0.4000", "1.0",
                                 "2"))
        self.assertEqual(script("learning").line("x", runs(0.5))[3], "0.000")

    def test_it_must_come_far_enough_in_time(self):
        learned = script("learning").learned
        self.assertTrue(learned(runs(0.5, 0.52), 0.4))
        self.assertFalse(learned(runs(0.5, 0.48), 0.4))
        self.assertFalse(learned(runs(0.9, seconds=1801), 0.4))

    def test_medians_pass_over_what_is_none(self):
        self.assertEqual(curves.medians([None, 3, 1, 2], 3), [None, 3, 3, 2])

    def test_each_run_is_a_line_in_its_methods_colour(self):
        picture = curves.svg({"a<b": [[2.0, 1.0], [2.0, None]], "c": [[0.0, 0.0, 0.0]]})
        root = xml.etree.ElementTree.fromstring(picture)
        lines = root.findall("{http://www.w3.org/2000/svg}polyline")
        colours = [line.get("stroke") for line in lines]
        self.assertEqual((len(lines), colours[0] == colours[1] != colours[2]), (3, True))
        self.assertIn("a&lt;b", picture)
        self.assertEqual(curves.svg({}).count("polyline"), 0)


if __name__ == "__main__":
    unittest.main()
