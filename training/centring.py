"""The RBM's gradient from two batches of units, plain or centred (MATH 2)."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from models.families.rbm import RBM
from training.objective import Memory

Centring = Literal["none", "centred", "enhanced"]

_SLIDE = 0.01
"""Weight of a new batch in the running mean of the hidden units (Melchior, Fischer & Wiskott 2016)."""


def offsets(model: RBM, means: Float[Tensor, " visible"], centring: Centring) -> Memory:
    """Memory of a gradient so centred, before the first step: the running mean of the hidden units."""
    if centring != "centred":
        return {}
    return {
        "visible_offset": means.to(model.W),
        "hidden_offset": torch.sigmoid(model.hidden_logits(means.to(model.W)[None]))[0],
    }


def contrast(
    positive: tuple[Float[Tensor, "n visible"], Float[Tensor, "n hidden"]],
    negative: tuple[Float[Tensor, "m visible"], Float[Tensor, "m hidden"]],
    memory: Memory,
    centring: Centring,
) -> tuple[dict[str, Tensor], Memory]:
    """<vh'>_data - <vh'>_model and the like, as the steepest ascent of the RBM written with centred units.

    With E(v, h) = -(v-mu)'W(h-lambda) - (v-mu)'b' - (h-lambda)'c' the gradient in (W, b', c') is that of the
    covariances; in the ordinary parameters b = b' - W lambda, c = c' - W'mu the same step reads, exactly,
    dW = <(v-mu)(h-lambda)'>_data - <(v-mu)(h-lambda)'>_model, db = <v>_data - <v>_model - dW lambda,
    dc = <h>_data - <h>_model - dW'mu (Montavon & Mueller 2012; Melchior, Fischer & Wiskott 2016). The law that
    the parameters stand for does not know of the offsets. `centred`: mu the mean of the data, lambda a running mean
    of the hidden units under the data; `enhanced`: halfway between data and model (Cho et al. 2011).
    """
    (v_data, h_data), (v_model, h_model) = positive, negative
    v_mean, h_mean = v_data.mean(0), h_data.mean(0)
    dv, dh = v_mean - v_model.mean(0), h_mean - h_model.mean(0)
    # One product for both phases: the model's rows enter with a minus sign.
    visible = torch.cat((v_data / len(v_data), v_model / -len(v_model)))
    dW = visible.T @ torch.cat((h_data, h_model))
    if centring == "none":
        return {"W": dW, "b": dv, "c": dh}, memory
    if centring == "enhanced":
        mu, lam = v_mean - dv / 2, h_mean - dh / 2
    else:
        mu = memory["visible_offset"]
        lam = torch.lerp(memory["hidden_offset"], h_mean, _SLIDE)
        memory = {**memory, "hidden_offset": lam}
    # <(v-mu)(h-lambda)'> differs by rank-one terms; mu lambda' falls out of the difference.
    dW.addr_(dv, lam, alpha=-1).addr_(mu, dh, alpha=-1)
    return {"W": dW, "b": dv - dW @ lam, "c": dh - dW.T @ mu}, memory
