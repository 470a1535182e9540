"""Names of methods that several layers of the machine know, as sets of words."""

from __future__ import annotations


def word_set(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


SAME = word_set(
    "to cuda cpu float half double bfloat16 clone view reshape squeeze unsqueeze contiguous type requires_grad_ "
    "share_memory xpu type_as flatten pin_memory train compile __enter__ get_base_model module"
)
PROGRESS = word_set("tqdm trange track progress_bar ProgressBar alive_it master_bar Progress")
NO_GRADIENT = word_set(
    "argmax argmin argsort eq ne gt lt ge le long int bool any all nonzero isnan isinf isfinite isclose allclose equal "
    "bincount searchsorted count_nonzero multinomial bernoulli logical_and logical_or logical_not one_hot"
)
WITH_INDICES = word_set("max min topk sort median mode kthvalue cummax cummin")
# torch's and Paddle's.
ZEROING = word_set("zero_grad clear_grad clear_gradients")
RESHAPES = word_set("view reshape flatten permute squeeze unsqueeze transpose t repeat expand")
# In the name of a method of an optimizer class that is not torch's: it may take the gradients over, or add them up.
HANDLES_GRADIENTS = word_set("grad grads gradient gradients aggregate accumulate collect")
