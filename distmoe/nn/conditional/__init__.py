"""Conditional parts of an encoder: modules that a task embedding modulates (CA-MTL, arXiv 2009.09139).

Tasks are row numbers here. A batch's task ids become a :class:`Conditioning` once per forward; every module is then
called with it, for all rows together: no module loops over tasks, and none is skipped because a task is absent, so
every rank runs the same sequence of modules whichever tasks it holds.

``mode: distmoe`` is exactly the unconditioned model before training; ``mode: repo`` has the structure, the parameter
counts and the fresh values of the published code (:mod:`distmoe.nn.conditional.published`).
"""

from distmoe.nn.conditional.alignment import ConditionalAlignment
from distmoe.nn.conditional.attention import ConditionalAttentionBias
from distmoe.nn.conditional.bottleneck import ConditionalBottleneck
from distmoe.nn.conditional.build import ConditionalParts, LayerParts, build_conditional
from distmoe.nn.conditional.conditioning import Conditioning
from distmoe.nn.conditional.config import ConditionalConfig
from distmoe.nn.conditional.layer_norm import ConditionalLayerNorm
from distmoe.nn.conditional.module import ConditionalModule, conditional_parameters, reset_conditional
from distmoe.nn.conditional.plan import ConditionalPlan, conditional_plan
from distmoe.nn.conditional.task_embedding import TaskConditioner

__all__ = [
    "ConditionalAlignment",
    "ConditionalAttentionBias",
    "ConditionalBottleneck",
    "ConditionalConfig",
    "ConditionalLayerNorm",
    "ConditionalModule",
    "ConditionalParts",
    "ConditionalPlan",
    "Conditioning",
    "LayerParts",
    "TaskConditioner",
    "build_conditional",
    "conditional_parameters",
    "conditional_plan",
    "reset_conditional",
]
