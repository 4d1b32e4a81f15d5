"""A training step of a UNet in float32 and in bfloat16, in turn in one process.

`python halves.py MODEL_FOLDER CELLS PAIRS` prints JSON: seconds of each at 2 rows of CELLS x CELLS
latents, and the UNet's parameters.
"""

from __future__ import annotations

import json
import sys
import time

import torch
from diffusers import UNet2DConditionModel

from dreambooth.engine.devices.allocator import keep_memory
from dreambooth.engine.devices.precision import Precision

ROWS, TOKENS = 2, 77


def main() -> None:
    folder, cells, pairs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    keep_memory()
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet").train()
    z = torch.randn(ROWS, unet.config.in_channels, cells, cells)
    t = torch.zeros(ROWS, dtype=torch.int64)
    text = torch.randn(ROWS, TOKENS, unet.config.cross_attention_dim)
    seconds: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for number in range(pairs + 1):
        for name in ("fp32", "bf16"):
            began = time.perf_counter()
            with Precision(name, torch.device("cpu")).autocast():
                out = unet(z, t, encoder_hidden_states=text).sample
            out.float().square().mean().backward()
            unet.zero_grad(set_to_none=True)
            if number:  # the first of each warms up
                seconds[name].append(time.perf_counter() - began)
    print(json.dumps({**seconds, "parameters": sum(p.numel() for p in unet.parameters())}))


if __name__ == "__main__":
    main()
