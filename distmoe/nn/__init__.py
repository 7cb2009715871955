"""Neural network parts that know nothing of tasks, ranks or experts."""

from distmoe.nn.activations import ACTIVATIONS, activation
from distmoe.nn.attention import SelfAttention
from distmoe.nn.embeddings import EncoderEmbeddings
from distmoe.nn.feed_forward import FeedForward
from distmoe.nn.init import init_normal_

__all__ = ["ACTIVATIONS", "EncoderEmbeddings", "FeedForward", "SelfAttention", "activation", "init_normal_"]
