"""Bootstrap intervals of many means over the same prompts at once."""

import numpy as np
from torch import Tensor

from demur.records import Mean

_RESAMPLES = 2000
_ENDS = (0.025, 0.975)


def bootstrap_means(values: Tensor, *, seed: int) -> tuple[Mean, ...]:
    """What `demur.evaluation.bootstrap_mean` says of each column, at the cost of one: all share their resamples.

    Args:
        values: [prompt, column], any unit.
        seed: of the resampling.

    Returns:
        Two-sided 95 % percentile intervals (Efron 1979), one for each column.
    """
    array = values.detach().cpu().double().numpy()
    n = len(array)
    # How often each prompt is drawn is multinomial, so a resampled mean is a weighted one.
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=_RESAMPLES)
    lows, highs = np.quantile(counts @ array / n, _ENDS, axis=0)
    means, largest = array.mean(0), array.max(0)
    return tuple(
        # Sums of equal values differ in the last digit by their order; the interval of a mean must not exclude it.
        Mean(mean=mean, low=min(low, mean), high=max(high, mean), n=n, largest=most)
        for mean, low, high, most in zip(means.tolist(), lows.tolist(), highs.tolist(), largest.tolist(), strict=True)
    )
