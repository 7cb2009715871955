"""From the probabilities of the chosen experts to their weights in the sum of outputs.

Shape letters: T tokens, K experts per token.
"""

from __future__ import annotations

from torch import Tensor

from distmoe.moe.gates.setting import Combine


def combine_weights(chosen_TK: Tensor, *, rule: Combine) -> Tensor:
    """Returns the combine weights of the chosen experts.

    Args:
        chosen_TK: Probabilities of the chosen experts, under a softmax over all experts of the task's group.
        rule: One of

            * ``raw``: p. Shrinks the output of upcycled experts (k=1, E=8: to about 1/8), so it breaks a
              pre-trained function; for training from scratch.
            * ``renorm``: p / sum of the chosen p. For k=1 this is 1 whatever p is: the task loss never reaches
              the router.
            * ``straight_through``: 1/k + p - stop_gradient(p). Forward exactly 1/k, so upcycled experts reproduce the
              dense layer; backward as ``raw``. The gradient is a biased estimator: finite differences of the
              forward pass, which is constant between two changes of route, disagree with it.

    Returns:
        [T, K], the dtype of ``chosen_TK``.
    """
    if rule == "raw":
        return chosen_TK
    if rule == "renorm" and chosen_TK.shape[-1] == 1:
        # p / p has gradient 0 only up to rounding, and Adam turns a gradient of 1e-7 noise into full steps.
        return 1.0 + 0.0 * chosen_TK
    if rule == "renorm":
        return chosen_TK / chosen_TK.sum(dim=-1, keepdim=True)
    # The difference first: it is exactly 0, whereas (1/k + p) - p is 1/k only up to rounding.
    return 1.0 / chosen_TK.shape[-1] + (chosen_TK - chosen_TK.detach())
