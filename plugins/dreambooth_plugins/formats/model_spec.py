"""What a file's header says of where it comes from (Stability's ModelSpec 1.0.0)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dreambooth import Job
    from dreambooth.interfaces import ModelInfo


def file_name(job: Job | None, otherwise: str) -> str:
    """Return what a run's file is called: by the run's name, which programs show."""
    return f"{otherwise if job is None else job.name}.safetensors"


def has_zero_terminal_snr(job: Job | None, info: ModelInfo) -> bool:
    """Say whether the last timestep was pure noise in training: by the job, or by the base."""
    asked = job is not None and getattr(job.scheduler, "zero_terminal_snr", False)
    return bool(asked or info.schedule.get("rescale_betas_zero_snr"))


def model_spec(info: ModelInfo, job: Job | None, suffix: str) -> dict[str, str]:
    """Return the `modelspec.*` texts (Stability's ModelSpec 1.0.0); `suffix` is `/lora` or empty.

    No times and no paths, so that equal runs give equal files.
    """
    architecture = info.names.get("modelspec", info.names.get("kohya", info.family))
    out = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architecture + suffix,
        "modelspec.implementation": "diffusers",
        "modelspec.prediction_type": {"v_prediction": "v"}.get(info.prediction, info.prediction),
    }
    if job is not None:
        height, width = job.data.size
        out |= {
            "modelspec.title": job.name,
            "modelspec.trigger_phrase": f"{job.subject.identifier} {job.subject.class_noun}",
            "modelspec.resolution": f"{width}x{height}",
        }
    return out
