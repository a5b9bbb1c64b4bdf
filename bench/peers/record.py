"""Writes peers.json: what was built from what, so that a result can name its peers.

Called by build: record.py WORK PACKAGE PYTORCH FLAG..., with PYTORCH `none` or an interpreter.
"""

import json
import pathlib
import re
import subprocess
import sys


def llama_cpp_commit(package):
    """The commit of llama.cpp that the package says it carries."""
    changelog = (package / "CHANGELOG.md").read_text()
    released = changelog.split("[Unreleased]")[-1]
    commit = re.search(r"ggml-org/llama\.cpp@([0-9a-f]+)", released)
    return commit.group(1) if commit else "unknown"


def first_line(*command):
    output = subprocess.run(command, capture_output=True, text=True, check=True)
    return (output.stdout or output.stderr).splitlines()[0]


def pytorch_versions(python):
    code = "import torch, transformers; print(torch.__version__, transformers.__version__)"
    torch, transformers = first_line(python, "-c", code).split()
    return {"python": python, "torch": torch, "transformers": transformers}


def main():
    work, package, python = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
    record = {
        "llama_cpp": {
            "package": package.name,
            "commit": llama_cpp_commit(package),
            "flags": sys.argv[4:],
            "compiler": first_line("c++", "--version"),
            "programs": sorted(p.name for p in (work / "bin").glob("llama-*")),
        },
        "pytorch": None if python == "none" else pytorch_versions(python),
    }
    (work / "peers.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
