"""A step of the engine against a bare loop over the same network, in turn in one process.

`python steps.py JOB.json PAIRS` prints JSON: seconds of each, and how far the losses are apart.
`python steps.py JOB.json STEPS alone` times the engine's steps with nothing in between.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

from dreambooth.engine.context import EngineContext
from dreambooth.engine.devices.automatic import precision_of
from dreambooth.engine.devices.processes import open_devices
from dreambooth.engine.reporting import Quiet
from dreambooth.engine.session import Session, open_session
from dreambooth.engine.step import condition, train_step
from dreambooth.jobs.loading import load_job


class Bare:
    """Forward, backward, clip and update over tensors that lie in memory, and nothing else."""

    def __init__(self, session: Session) -> None:
        self.session = session
        batch = session.batches.make(0, 0)
        self.z_t = session.schedule.add_noise(batch.latents, batch.draw)
        self.target = session.schedule.target(batch.latents, batch.draw)
        self.t, self.prior = batch.draw.t, batch.is_prior
        self.unet: Any = session.model.parts["unet"]
        self.tokens = None
        self.added: dict[str, Any] = {}
        if session.model.text_is_frozen:
            with torch.no_grad():
                cond = condition(session.model, batch.prompts, batch.geometry).tensors
            self.embeds = cond["embeds"]
            if "pooled" in cond:
                added = {"text_embeds": cond["pooled"], "time_ids": cond["time_ids"]}
                self.added = {"added_cond_kwargs": added}
        else:
            distinct = list(dict.fromkeys(batch.prompts))
            self.place = torch.tensor([distinct.index(p) for p in batch.prompts])
            self.encoder: Any = session.model.parts["text_encoder"]
            tokenizer: Any = session.model.tokenizer  # type: ignore[attr-defined]
            made = tokenizer(distinct, padding="max_length", truncation=True, return_tensors="pt")
            self.tokens = made.input_ids
        self.parameters = list(session.state.parameters.values())
        self.optimizer = session.state.optimizer

    def loss(self) -> torch.Tensor:
        """Return the loss of the batch by plain calls."""
        with self.session.ctx.autocast():
            embeds = (
                self.embeds if self.tokens is None else self.encoder(self.tokens)[0][self.place]
            )
            pred = self.unet(self.z_t, self.t, encoder_hidden_states=embeds, **self.added).sample
        rows = (pred.float() - self.target).square().mean(dim=(1, 2, 3))
        return rows[~self.prior].mean() + rows[self.prior].mean()

    def texts(self) -> torch.Tensor:
        """Return the rows' embeddings: kept, or from one forward over the distinct prompts."""
        return self.embeds if self.tokens is None else self.encoder(self.tokens)[0][self.place]

    def step(self) -> None:
        """Do one step."""
        self.loss().backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def timed(call: Any) -> float:
    began = time.perf_counter()
    call()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter() - began


def losses_apart(session: Session, bare: Bare) -> float:
    """Return how far the engine's loss of the first step lies from the plain one, relatively."""
    with torch.no_grad():
        plain = float(bare.loss())
    session.state.step = 0
    engine = float(train_step(session).loss)
    return abs(engine - plain) / abs(plain)


def main() -> None:
    path, pairs, alone = Path(sys.argv[1]), int(sys.argv[2]), "alone" in sys.argv
    job = load_job(path)
    with open_devices(job.train) as devices:
        precision = precision_of(job, devices.device)
        ctx = EngineContext(job, devices.device, precision, job.folder, Quiet(), devices)
        session = open_session(ctx, job.data.scan(ctx))
        bare = Bare(session)
        apart = losses_apart(session, bare)
        bare.step()
        ours, plain, made = [], [], []
        for _ in range(pairs):
            ours.append(timed(lambda: train_step(session)))
            if not alone:
                made.append(timed(lambda: session.batches.make(session.state.step, 0)))
                plain.append(timed(bare.step))
        trained = sum(p.numel() for p in bare.parameters)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    values = {
        "ours": ours, "bare": plain, "batch": made, "losses_apart": apart,
        "precision": precision.name, "trained": trained, "peak_bytes": peak,
    }  # fmt: skip
    print(json.dumps(values))


if __name__ == "__main__":
    main()
