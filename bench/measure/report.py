"""The result as a table for people and as JSON for programs."""

import json


def number(value):
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def verdict(row):
    return "PASS" if row.passed else "FAIL"


def table(rows):
    """The rows as a Markdown table whose columns line up."""
    cells = [("model", "what", "unit", "offshoot", "peer", "ratio", "target", "", "peer is")]
    for row in rows:
        bound = {">=": "≥", "<=": "≤"}[row.bound]
        cells.append((row.model, row.what, row.unit, number(row.ours), number(row.peer),
                      "-" if row.value is None else f"{row.value:.2f}", f"{bound} {row.target}",
                      verdict(row), row.note))
    return aligned(cells)


def aligned(cells):
    """Lines of texts, the first of them the heading, as a Markdown table."""
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths)) + " |" for line in cells]
    lines.insert(1, "| " + " | ".join("-" * max(width, 3) for width in widths) + " |")
    return "\n".join(lines)


def header(facts):
    """The machine, the versions and the settings, a line each."""
    machine, peer = facts["machine"], facts["peers"]["llama_cpp"]
    pytorch = facts["peers"]["pytorch"]
    load = ", ".join(f"{value:.2f}" for value in machine["load_average"])
    return "\n".join([
        f"machine   {machine['processor']}, {machine['cores']} cores, {machine['memory']}, "
        f"{machine['system']}",
        f"flags     {' '.join(machine['flags'])}",
        f"load      {load}",
        f"offshoot  {facts['offshoot']['version']}, commit {facts['offshoot']['commit']}",
        f"llama.cpp {peer['commit']} ({peer['package']}), {peer['compiler']}",
        f"          {' '.join(peer['flags'])}",
        f"pytorch   {'none' if pytorch is None else pytorch['torch']}",
        f"settings  {facts['threads']} threads, {facts['rounds']} rounds",
    ])


def write_json(path, facts, samples, rows):
    result = {
        **facts,
        "rows": [{**vars(row), "passed": row.passed} for row in rows],
        "samples": samples.as_json(),
        "errors": {" / ".join(map(str, name)): text for name, text in samples.errors.items()},
        "noisy": [{**item, "name": " / ".join(map(str, item["name"]))} for item in samples.noisy],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
