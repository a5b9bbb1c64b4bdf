"""What is measured in a round, in which order: the sides take turns."""

from .rows import SHAPES


def round_of(offshoot, peers, model):
    """(name, function) of all that one round takes for `model`; `offshoot` may be absent."""
    role, path = model.role, model.path
    yield (role, "llama.cpp", "same file"), lambda: peers.speeds(path)
    if offshoot:
        yield (role, "offshoot", "bench"), lambda: offshoot.bench(model)
    yield (role, "llama.cpp", "step_ms"), lambda: peers.step_ms(path)
    if role in SHAPES.values():
        return
    if offshoot:
        yield (role, "offshoot", "decode_wall"), lambda: offshoot.decode_wall(model)
    yield (role, "llama.cpp", "wall", "same file"), lambda: peers.decode_wall(path)
    if role == "135M":
        yield from extras_of_small(offshoot, peers, model)


def extras_of_small(offshoot, peers, model):
    """What is compared on the small model only."""
    role, path = model.role, model.path
    for kind, file in peers.requantised(model).items():
        yield (role, "llama.cpp", "requantised", kind), lambda file=file: peers.speeds(file)
    yield (role, "pytorch", "prompt"), lambda: peers.pytorch_prompt(path)
    first = (role, "llama.cpp", "first_token_s")
    yield first, lambda: peers.first_token_s(path)
    if offshoot:
        name = (role, "offshoot", "first_token_s")
        yield (*name, "empty"), lambda: offshoot.first_token_s(model, is_packed=False)
        yield (*name, "packed"), lambda: offshoot.first_token_s(model, is_packed=True)


def once(offshoot, peers, model):
    """What does not change from round to round: the memory held at most."""
    if model.role in SHAPES.values():
        return
    if offshoot:
        yield (model.role, "offshoot", "peak_bytes"), lambda: offshoot.peak_bytes(model)
    yield (model.role, "llama.cpp", "peak_bytes"), lambda: peers.peak_bytes(model.path)


def measure(samples, offshoot, peers, models, n_rounds, say):
    """Takes all samples. Files are read once before, so that each side finds them in memory."""
    for model in models:
        model.path.read_bytes()
        for name, function in once(offshoot, peers, model):
            samples.take(name, function)
    for index in range(n_rounds):
        say(f"round {index + 1} of {n_rounds}")
        samples.take(("machine", "read_bandwidth_gb_s"), peers.read_bandwidth_gb_s)
        for model in models:
            for name, function in round_of(offshoot, peers, model):
                samples.take(name, function)
