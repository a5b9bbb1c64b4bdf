"""Workloads: files of prompts, one JSON object a line, of one kind each.

`{"name", "kind", "messages": [{"role", "content"}, ...]}` goes through the model's chat template;
`{"name", "kind", "prompt"}` is text to be gone on with as it stands.
"""

import dataclasses
import json
import pathlib

KINDS = ("chat", "code", "copy", "json", "translation", "adversarial")
ROLES = ("system", "user", "assistant")


@dataclasses.dataclass(frozen=True)
class Workload:
    """The prompts of a file, as the objects of its lines."""

    kind: str
    prompts: tuple


def read(path, n_prompts=0):
    """The first `n_prompts` of the workload at `path`; all with 0."""
    try:
        lines = pathlib.Path(path).read_text().splitlines()
        prompts = tuple(checked(json.loads(line)) for line in lines)
    except (OSError, ValueError) as error:
        raise SystemExit(f"bench/spec: {path}: {error}") from error
    kinds = {prompt["kind"] for prompt in prompts}
    if len(kinds) != 1:
        raise SystemExit(f"bench/spec: {path}: a workload is of one kind, this is of {len(kinds)}")
    if len({prompt["name"] for prompt in prompts}) < len(prompts):
        raise SystemExit(f"bench/spec: {path}: two prompts have one name")
    return Workload(kinds.pop(), prompts[:n_prompts] if n_prompts else prompts)


def checked(prompt):
    """`prompt` if it is one; otherwise what is wrong with it, as a ValueError."""
    if not isinstance(prompt, dict):
        raise ValueError("a line is no object")
    name = prompt.get("name")
    if not isinstance(name, str) or not name:
        raise ValueError("a prompt has no name")
    if prompt.get("kind") not in KINDS:
        raise ValueError(f"{name}: the kind is one of {', '.join(KINDS)}")
    if set(prompt) == {"name", "kind", "prompt"}:
        if not isinstance(prompt["prompt"], str) or not prompt["prompt"]:
            raise ValueError(f"{name}: the prompt is empty")
    elif set(prompt) == {"name", "kind", "messages"}:
        check_messages(name, prompt["messages"])
    else:
        raise ValueError(f"{name}: has either messages or a prompt, and nothing else")
    return prompt


def check_messages(name, messages):
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{name}: has no messages")
    for message in messages:
        if set(message) != {"role", "content"} or message["role"] not in ROLES:
            raise ValueError(f"{name}: a message has a role and a content, and a known role")
    if messages[-1]["role"] != "user":
        raise ValueError(f"{name}: the last word is not the user's")


def write(path, workload):
    """Writes `workload` in the format that `read` reads."""
    pathlib.Path(path).write_text("".join(json.dumps(line) + "\n" for line in workload.prompts))
