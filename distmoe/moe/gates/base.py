"""The skeleton of all gates: a gate overrides :meth:`Gate.logits`, everything else happens here once.

Shape letters: T tokens (padding removed), D model width, E experts of the layer over all task groups,
K experts per token, M tasks, B sequences.

To add a gate: subclass :class:`Gate`, declare its tensors in the constructor, override ``logits``, name it in
``build.py`` and in ``GateConfig.kind``. ``docs/gates.md`` walks through an example.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from distmoe.errors import ConfigError
from distmoe.moe.gates.combine import combine_weights
from distmoe.moe.gates.declared import DeclaredModule, router_dtype
from distmoe.moe.gates.setting import GateSetting, Noise
from distmoe.moe.routing import Routing, TokenContext

Granularity = Literal["token", "sequence", "task"]


class Gate(DeclaredModule):
    """Chooses ``top_k`` experts for each token among those of its task's group.

    The router runs in float32 whatever the precision of the module and of autocast: half-precision logits flip
    routes and were the main instability of early sparse models (Switch Transformer, section 2.4).

    Noise, while training only: ``normal`` adds N(0, (1/E)^2) to the logits (V-MoE), ``multiplicative`` multiplies the
    router's input by U(1-eps, 1+eps) (Switch). It is drawn at the gate's granularity, so that a task-level gate
    still sends all tokens of a task to one place. It comes from torch's default generator of the device, whose
    state the trainer saves for every rank; a resumed run therefore draws the same noise.

    Gates are dense parameters: every rank has every gate, and with no token, or none of some task, every parameter
    still gets a gradient, of zeros.

    Args:
        setting: What does not depend on the kind of gate.

    Raises:
        ConfigError: If the gate cannot have the noise that is asked for.
    """

    granularity: ClassVar[Granularity] = "token"
    """All tokens of one unit (token, sequence, task) go to the same experts."""
    noises: ClassVar[tuple[Noise, ...]] = ("none", "normal", "multiplicative")
    """Without ``multiplicative`` for a gate that reads no token."""

    def __init__(self, setting: GateSetting) -> None:
        super().__init__()
        if setting.noise not in self.noises:
            raise ConfigError(
                f"routed layer {setting.routed_index}: {type(self).__name__} reads nothing that this noise changes",
                got=f"model.moe.gate.noise {setting.noise}",
                expected=" | ".join(self.noises),
                remedy=f"set model.moe.gate.noise to {' or '.join(self.noises)}, or choose another gate",
            )
        self.hidden_size = setting.hidden_size
        self.num_tasks = setting.num_tasks
        self.num_experts = setting.num_experts
        self.top_k = setting.top_k
        self.combine = setting.combine
        self.noise = setting.noise
        self.noise_eps = setting.noise_eps
        self.detach_input = setting.detach_input
        self.all_allowed = setting.all_allowed
        # Not persistent: it follows from the task grouping, which may change between structural phases.
        self.allowed_ME: Tensor
        self.register_buffer("allowed_ME", torch.tensor(setting.allowed, dtype=torch.bool), persistent=False)

    def logits(self, x_TD: Tensor, context: TokenContext) -> Tensor:
        """Scores of all experts for each token; the one method of a gate.

        It need not know about task groups, noise or top-k. It must use all parameters of the gate whatever tasks are
        present, cast them to ``router_dtype(x_TD)``, and must not synchronise with the host.

        Args:
            x_TD: Token states. Already float32 (float64 if they came so), except for task-level gates, which do not
                read them.
            context: Task and sequence of each token.

        Returns:
            [T, E], float32.
        """
        raise NotImplementedError

    def forward(self, x_TD: Tensor, context: TokenContext) -> Routing:
        """Routes T tokens, also T = 0.

        Args:
            x_TD: Token states that enter the feed-forward sub-layer, any floating dtype.
            context: Task and sequence of each token.
        """
        with torch.autocast(device_type=x_TD.device.type, enabled=False):
            if self.granularity != "task":
                x_TD = x_TD.detach() if self.detach_input else x_TD
                x_TD = self._with_input_noise(x_TD.to(router_dtype(x_TD)), context)
            logits_TE = self._with_logit_noise(self.logits(x_TD, context), context)
            # Overflowed half-precision states give infinite or undefined logits. Their loss is reported as not
            # finite; but no token may leave its task group before that, or ranks would disagree about the exchange.
            scores_TE = torch.nan_to_num(logits_TE.detach())
            if not self.all_allowed:
                forbidden_TE = ~self.allowed_ME[context.task_ids_T]
                logits_TE = logits_TE.masked_fill(forbidden_TE, -torch.inf)
                scores_TE = scores_TE.masked_fill(forbidden_TE, -torch.inf)
            expert_ids_TK = scores_TE.topk(self.top_k, dim=-1).indices
            probs_TE = logits_TE.softmax(dim=-1)
            weights_TK = combine_weights(probs_TE.gather(1, expert_ids_TK), rule=self.combine)
        return Routing(expert_ids_TK, weights_TK, probs_TE, logits_TE)

    def extra_repr(self) -> str:
        return f"tasks={self.num_tasks}, E={self.num_experts}, top_k={self.top_k}, combine={self.combine}"

    def _with_input_noise(self, x_TD: Tensor, context: TokenContext) -> Tensor:
        if self.noise != "multiplicative" or not self.training:
            return x_TD
        low, high = 1 - self.noise_eps, 1 + self.noise_eps
        if self.granularity == "token":
            return x_TD * torch.empty_like(x_TD).uniform_(low, high)
        # One factor for all tokens of a sequence: their mean would level out one of each.
        return x_TD * x_TD.new_empty(context.num_sequences, x_TD.shape[1]).uniform_(low, high)[context.sequence_ids_T]

    def _with_logit_noise(self, logits_TE: Tensor, context: TokenContext) -> Tensor:
        if self.noise != "normal" or not self.training:
            return logits_TE
        if self.granularity == "token":
            return logits_TE + torch.randn_like(logits_TE) / self.num_experts
        per_task = self.granularity == "task"
        num_units = self.num_tasks if per_task else context.num_sequences
        units_T = context.task_ids_T if per_task else context.sequence_ids_T
        return logits_TE + logits_TE.new_empty(num_units, self.num_experts).normal_()[units_T] / self.num_experts


def take_rows(table: Tensor, index_T: Tensor) -> Tensor:
    """``table[index_T]`` with a backward that is deterministic on every device.

    Few rows (tasks) are taken by many tokens. ``index_select`` would add their gradients with atomics on CUDA, in an
    order that changes from run to run; the embedding's backward sorts instead, and gives zeros for no token.
    """
    return F.embedding(index_T, table)
