"""The loss of another script's first step, computed by the engine's own parts from its inputs.

`python equal_loss.py JOB.json RECORD.json.safetensors` prints JSON: both losses, and how far they
are apart. Adapters begin with an update of zero, so that no draw of theirs has a part in it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from dreambooth.engine.context import EngineContext
from dreambooth.engine.data.geometry import plain_geometry
from dreambooth.engine.devices.automatic import precision_of
from dreambooth.engine.devices.processes import open_devices
from dreambooth.engine.reporting import Quiet
from dreambooth.engine.session import open_session
from dreambooth.engine.step import condition
from dreambooth.interfaces import StepTensors
from dreambooth.jobs.loading import load_job


def main() -> None:
    job, theirs = load_job(Path(sys.argv[1])), load_file(sys.argv[2])
    z_t, t = theirs["z_t"].float(), theirs["t"]
    rows = len(z_t)
    prior = torch.arange(rows) >= rows // 2
    target = torch.cat([theirs["target_1"], theirs["target_0"]])  # of the class comes first there
    subject = job.subject
    texts = ["a photo of {identifier} {class_noun}", "a photo of a {class_noun}"]
    prompts = [subject.fill(texts[int(late)]) for late in prior.tolist()]
    with open_devices(job.train) as devices:
        precision = precision_of(job, devices.device)
        ctx = EngineContext(job, devices.device, precision, job.folder, Quiet(), devices)
        session = open_session(ctx, job.data.scan(ctx))
        with ctx.autocast(), torch.no_grad():
            cond = condition(session.model, prompts, [plain_geometry(job.data.size)] * rows)
            pred = session.model.denoise(z_t, t, cond).float()
    step = StepTensors(
        pred=pred, target=target.float(), reference=None, t=t, snr=None, is_prior=prior,
        weight=torch.ones(rows), mask=None, prediction=session.model.info.prediction,
        snr_table=None,
    )  # fmt: skip
    losses = job.loss.rows(step)
    ours = float(losses[~prior].mean() + losses[prior].mean())
    loss = float(theirs["loss_0"] + theirs["loss_1"])
    print(json.dumps({"ours": ours, "theirs": loss, "apart": abs(ours - loss) / loss}))


if __name__ == "__main__":
    main()
