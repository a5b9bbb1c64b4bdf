"""Writes a small checkpoint of Medusa heads by torch.save, with the published heads' modules.

The numbers are those of medusa_heads.py: element i of a tensor of head k is (31 k + 7 i) mod 64 / 16 - 2.
Head 0 is in bfloat16, head 1 in float32. Needs torch 2.15.0 alone.
Run from the repository's root: python3 scripts/oracles/medusa_heads_torch.py
"""

import pathlib

import torch
from torch import nn

OUT = pathlib.Path("crates/offshoot-models/tests/data/medusa/heads_by_torch.pt")
WIDTH, VOCABULARY = 4, 6


class ResBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.act = nn.SiLU()


heads = nn.ModuleList(
    nn.Sequential(ResBlock(), nn.Linear(WIDTH, VOCABULARY, bias=False)).to(number_type)
    for number_type in (torch.bfloat16, torch.float32)
)
with torch.no_grad():
    for k, head in enumerate(heads):
        for tensor in head.parameters():
            i = torch.arange(tensor.numel())
            tensor.copy_(((31 * k + 7 * i) % 64 / 16 - 2).reshape(tensor.shape))
torch.save(heads.state_dict(), OUT)
