"""Which task, which examples, for each rank and step."""

from distmoe.data.sampling.mixture import mixture_weights
from distmoe.data.sampling.sampler import DrawClass, MixtureSampler

__all__ = ["DrawClass", "MixtureSampler", "mixture_weights"]
