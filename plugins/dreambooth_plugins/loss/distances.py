"""Row-wise distances and timestep weights, as pure functions of tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch.nn import functional

from dreambooth.errors import JobError

if TYPE_CHECKING:
    from torch import Tensor

    from dreambooth.interfaces import Prediction


TINY = 1e-12
"""Keeps a row without any weight from dividing by 0."""


def row_distance(
    pred: Tensor,
    target: Tensor,
    distance: Literal["mse", "huber", "l1"],
    huber_delta: float,
    weights: Tensor | None = None,
) -> Tensor:
    """Return [B] float32, the mean over C, h, w of a distance of two [B, C, h, w] tensors.

    With `weights` [B, 1, h, w] it is the weighted mean, sum(w d) / sum(w): a row's value does not
    depend on how large the weighted area is. A row whose weights are all 0 gives 0.
    `huber` is `torch.nn.functional.huber_loss`: d^2 / 2 up to delta, delta (|d| - delta / 2)
    beyond; so it is half of `mse` where all differences are small.
    """
    pred, target = pred.float(), target.float()
    if distance == "mse":
        each = functional.mse_loss(pred, target, reduction="none")
    elif distance == "l1":
        each = functional.l1_loss(pred, target, reduction="none")
    else:
        each = functional.huber_loss(pred, target, reduction="none", delta=huber_delta)
    if weights is None:
        return each.flatten(1).mean(1)
    area = weights.flatten(1).sum(1) * each.shape[1]
    return (each * weights).flatten(1).sum(1) / area.clamp(min=TINY)


def min_snr_weight(snr: Tensor | None, gamma: float, prediction: Prediction) -> Tensor:
    """Return [B] weights of Min-SNR-gamma (Hang et al. 2023) for SNR [B].

    epsilon: min(SNR, gamma) / SNR; v: min(SNR, gamma) / (SNR + 1). Finite at SNR = 0.
    `JobError` for a flow model, which has no SNR.
    """
    if snr is None or prediction == "flow":
        raise JobError(
            "loss.min_snr_gamma: the noise schedule has no signal-to-noise ratio",
            "leave min_snr_gamma out for flow-matching models",
        )
    if prediction == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1.0)
    # The same as min(SNR, gamma) / SNR, and 1 instead of 0 / 0 at pure noise.
    return (gamma / snr).clamp(max=1.0)


MAX_SNR = 1000.0
"""Above it all timesteps weigh alike: at the clean end the weight would vanish."""


def debiased_weight(snr: Tensor | None, table: Tensor | None, prediction: Prediction) -> Tensor:
    """Return [B] weights of debiased estimation (Yu et al. 2023) for SNR [B].

    epsilon: 1 / sqrt(min(SNR, 1000)); v: 1 / (SNR + 1); both divided by their mean over `table`,
    the SNR [T] of every timestep that is drawn. `JobError` where there is no such ratio or table.
    """
    if snr is None or table is None or prediction == "flow":
        raise JobError(
            "loss.debiased: the noise schedule does not list its signal-to-noise ratios",
            "leave debiased out with this scheduler",
        )

    def raw(ratio: Tensor) -> Tensor:
        if prediction == "v_prediction":
            return 1.0 / (ratio + 1.0)
        return ratio.clamp(max=MAX_SNR).rsqrt()

    return raw(snr) / raw(table).mean().item()
