"""Which task, which examples, for each rank and step."""

from distmoe.data.sampling.mixture import check_sampled, mixture_weights
from distmoe.data.sampling.sampler import DrawClass, MixtureSampler

__all__ = ["DrawClass", "MixtureSampler", "check_sampled", "mixture_weights"]
