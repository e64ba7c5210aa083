"""Reading activations of a chat model over prompts."""

from demur.activations._means import ActivationMeans, mean_activations, stream_at

__all__ = ["ActivationMeans", "mean_activations", "stream_at"]
