"""Tests of what bench/tuning takes for a step and for a forward pass, with a program that stands in."""

import pathlib
import stat
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from measure import tuning  # noqa: E402
from measure.samples import Samples  # noqa: E402

# Its steps take 9, 3, 2 and 4 seconds, the evaluations behind them 7, 1.25, 1.5 and 1.75.
STAND_IN = '''#!{python}
import json, pathlib, sys
arguments = sys.argv[1:]
if arguments[0] == "eval":
    print(json.dumps({{"seconds": 100}}))
else:
    output = pathlib.Path(arguments[arguments.index("--output") + 1])
    output.mkdir()
    lines = [{{"event": "begin"}}]
    for step, evaluation in ((9, 7), (3, 1.25), (2, 1.5), (4, 1.75)):
        lines.append({{"event": "step", "seconds": step}})
        if "--eval-data" in arguments and "--eval-every" in arguments:
            lines.append({{"event": "eval", "seconds": evaluation}})
    (output / "log.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
'''


class Tuning(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        folder = pathlib.Path(folder.name)
        program = folder / "offshoot"
        program.write_text(STAND_IN.format(python=sys.executable))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        self.ours = tuning.Ours(program, 2, "model", folder)

    def test_a_step_and_a_forward_pass_are_medians_of_what_is_warm(self):
        self.assertEqual(self.ours.tune("rows", ())["step_s"], 3)
        self.assertEqual(self.ours.forward("rows", ())["step_s"], 1.5)
        self.assertEqual(list(self.ours.evaluate("rows", ())), ["peak"])

    def test_a_step_is_held_against_two_warm_passes_and_its_peak_against_evaluation(self):
        samples = Samples(needs_quiet=False)
        for name, figures in (("mezo f32", {"step_s": 3.3, "peak": 105}),
                              ("forward f32", {"step_s": 1.5, "peak": 300}),
                              ("eval f32", {"peak": 100})):
            samples.keep(("offshoot", name), figures)
        rows = {row.what: row for row in tuning.all_rows(samples, 80)}
        self.assertAlmostEqual(rows["MeZO step over two forwards"].value, 1.1)
        self.assertAlmostEqual(rows["peak of a MeZO step over eval"].value, 1.05)
        self.assertAlmostEqual(rows["peak of eval over weights"].value, 1.25)


if __name__ == "__main__":
    unittest.main()
