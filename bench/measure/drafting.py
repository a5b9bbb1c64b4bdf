"""Speculative decoding, measured and judged: what bench/spec runs, and the rows it ends with.

Names of samples: (model, kind of workload, "offshoot" or "llama.cpp", arm or mode, figure).
"""

import dataclasses
import pathlib
import statistics
import tempfile

from measure import report, server, workloads
from measure.rows import Row, quotient

ARMS = ("off", "suffix", "rest", "medusa", "auto")
KINDS = {"135M": ("chat", "copy", "json", "translation", "adversarial"),
         "0.5B": ("code", "copy", "json", "translation")}
OVER_PLAIN = {"code": 1.5, "copy": 2.2, "chat": 1.3}
# Where there is nothing to gain, nothing may be lost either.
NEVER_BELOW = 0.98
OVER_PEERS_BEST = {("0.5B", "code"): 1.7}
PREDICTION_ERROR = 0.1
SHOWN = ("tokens", "tokens_per_s", "tokens_per_step", "predicted_tokens_per_step", "ms_per_step",
         "draft_ms_per_step", "differences", "prompt_tokens")


@dataclasses.dataclass(frozen=True)
class Task:
    """One workload on one model."""

    model: object
    workload: workloads.Workload


class Pass:
    """One pass over a workload by each side."""

    def __init__(self, offshoot, peers, arms, modes, n_tokens):
        self.offshoot, self.peers = offshoot, peers
        self.arms, self.modes, self.n_tokens = arms, modes, n_tokens
        self.plain_texts = {}

    def ours(self, task):
        """Figures of all arms in one process, by (arm, figure)."""
        with tempfile.TemporaryDirectory(prefix="offshoot-bench-") as folder:
            file = pathlib.Path(folder) / f"{task.workload.kind}.jsonl"
            workloads.write(file, task.workload)
            arms, step_ms = self.offshoot.spec(task.model, file, len(task.workload.prompts),
                                               self.arms, self.n_tokens)
        figures = {(name, key): arm[key] for name, arm in arms.items() for key in SHOWN
                   if key in arm}
        for name, arm in arms.items():
            for source, count in arm.get("accepted", {}).items():
                figures[(name, "accepted", source)] = count
        for rows, ms in step_ms.items():
            figures[("step_ms", rows)] = ms
        return figures

    def peers_mode(self, task, mode):
        """Figures of one mode of llama.cpp, with the number of answers unlike its plain ones."""
        figures, texts = server.run_workload(
            self.peers.program("llama-server"), task.model.path, self.peers.threads, mode,
            task.workload.prompts, self.n_tokens)
        key = (task.model.role, task.workload.kind)
        plain = self.plain_texts.setdefault(key, texts) if mode == "plain" else (
            self.plain_texts.get(key))
        if plain is not None:
            figures["differences"] = sum(a != b for a, b in zip(texts, plain))
        return figures


def measure(samples, one_pass, tasks, n_rounds, say):
    """Takes all samples, the sides in turns. Files are read once before."""
    for task in tasks:
        task.model.path.read_bytes()
    for index in range(n_rounds):
        say(f"round {index + 1} of {n_rounds}")
        for task in tasks:
            name = (task.model.role, task.workload.kind)
            for mode in one_pass.modes:
                samples.take((*name, "llama.cpp", mode),
                             lambda task=task, mode=mode: one_pass.peers_mode(task, mode))
                if mode == "plain" and one_pass.offshoot:
                    samples.take((*name, "offshoot"), lambda task=task: one_pass.ours(task))


def peers_best(samples, role, kind):
    """The greatest median of tokens a second over all modes of llama.cpp, and which one it is."""
    return samples.best(role, kind, "llama.cpp", "tokens_per_s")


def all_rows(samples, tasks):
    rows = []
    for task in tasks:
        role, kind = task.model.role, task.workload.kind
        rows += speed_rows(samples, role, kind)
        rows.append(prediction_row(samples, role, kind))
        rows.append(difference_row(samples, role, kind))
        rows += prompt_rows(samples, role, kind)
    return rows


def speed_rows(samples, role, kind):
    ours, plain = (samples.median(role, kind, "offshoot", arm, "tokens_per_s")
                   for arm in ("auto", "off"))
    rows = [Row(role, f"{kind}: auto over off", "tok/s", ours, plain, quotient(ours, plain), ">=",
                OVER_PLAIN.get(kind, NEVER_BELOW), "offshoot without drafts")]
    if (role, kind) in OVER_PEERS_BEST:
        best, mode = peers_best(samples, role, kind)
        rows.append(Row(role, f"{kind}: auto over llama.cpp's best", "tok/s", ours, best,
                        quotient(ours, best), ">=", OVER_PEERS_BEST[role, kind],
                        f"llama.cpp {mode}"))
    return rows


def prediction_row(samples, role, kind):
    """How far the controller's expectation is from what came: both directions are errors."""
    predicted, realised = (samples.median(role, kind, "offshoot", "auto", key)
                           for key in ("predicted_tokens_per_step", "tokens_per_step"))
    ratio = quotient(predicted, realised)
    error = None if ratio is None else abs(ratio - 1)
    return Row(role, f"{kind}: predicted against realised", "tok/step", predicted, realised, error,
               "<=", PREDICTION_ERROR, "realised tokens a step; the ratio is the error")


def difference_row(samples, role, kind):
    """Answers of any arm, in any round, that are not those of plain decoding."""
    counts = [max(values) for name, values in samples.lists.items()
              if name[:3] == (role, kind, "offshoot") and name[-1] == "differences"]
    worst = max(counts, default=None)
    return Row(role, f"{kind}: differences", "answers", worst, 0, worst, "<=", 0,
               "offshoot without drafts; the worst arm and round")


def prompt_rows(samples, role, kind):
    """That both sides read the same number of prompt tokens, where offshoot tells its own."""
    ours = samples.median(role, kind, "offshoot", "off", "prompt_tokens")
    if ours is None:
        return []
    peer = samples.median(role, kind, "llama.cpp", "plain", "prompt_tokens")
    ratio = quotient(ours, peer)
    error = None if ratio is None else abs(ratio - 1)
    return [Row(role, f"{kind}: prompt tokens", "tokens", ours, peer, error, "<=", 0,
                "llama.cpp's count of the same texts")]


def figures_table(samples, tasks):
    """Every arm and mode of every workload: medians, and the ratios to what it is held against."""
    cells = [("model", "workload", "program", "arm", "tok/s", "from", "to", "wall", "E(n)",
              "predicted", "T(n) ms", "draft ms", "x own plain", "x llama.cpp", "x its best",
              "differ")]
    for task in tasks:
        role, kind = task.model.role, task.workload.kind
        for program, plain in (("offshoot", "off"), ("llama.cpp", "plain")):
            arms = {name[3]: None for name in samples.lists
                    if name[:3] == (role, kind, program) and name[-1] == "tokens_per_s"}
            for arm in arms:
                cells.append(figures_line(samples, (role, kind), program, arm, plain))
    return report.aligned(cells)


def figures_line(samples, names, program, arm, plain):
    def median(key, program=program, arm=arm):
        return samples.median(*names, program, arm, key)

    speeds = samples.lists[(*names, program, arm, "tokens_per_s")]
    speed = median("tokens_per_s")
    held = (median("tokens_per_s", arm=plain), median("tokens_per_s", "llama.cpp", "plain"),
            peers_best(samples, *names)[0])
    figures = [speed, min(speeds), max(speeds),
               *(median(key) for key in ("wall_tokens_per_s", "tokens_per_step",
                                         "predicted_tokens_per_step", "ms_per_step",
                                         "draft_ms_per_step")),
               *(quotient(speed, other) for other in held), median("differences")]
    return (*names, program, arm, *map(report.number, figures))


def step_line(samples, role):
    """The cost of a step by its rows, as offshoot measured it beside all its workloads."""
    times = {}
    for name, values in samples.lists.items():
        if name[0] == role and name[2:4] == ("offshoot", "step_ms"):
            times.setdefault(name[4], []).extend(values)
    steps = ", ".join(f"{rows}: {report.number(statistics.median(values))}"
                      for rows, values in sorted(times.items()))
    return f"{role}: T(k) of offshoot in ms: {steps or '-'}"


def tasks_of(models, folder, code, kinds, n_prompts):
    """The workloads that each model is measured on. `code` is made, not kept with the others."""
    tasks, known = [], {}
    for model in models:
        for kind in KINDS[model.role]:
            if kinds and kind not in kinds:
                continue
            path = code if kind == "code" else folder / f"{kind}.jsonl"
            if not path.is_file():
                raise SystemExit(f"bench/spec: no {path}; run bench/workloads/humaneval")
            if kind not in known:
                known[kind] = workloads.read(path, n_prompts)
            tasks.append(Task(model, known[kind]))
    return tasks


def check_peers(peers):
    """That the server is there before an hour of measuring finds that it is not."""
    if not peers.program("llama-server").is_file():
        raise SystemExit("bench/spec: no llama-server; run bench/peers/build "
                         f"--work {peers.work}")
