"""Several processes on the loopback address: `experiments/distributed.py`, whose claims are the theorems."""

import numpy as np


def test_processes_agree_to_the_bit_and_a_lost_one_is_named(measured):
    """One and two processes, one of them killed; its claims are checked where they are read."""
    summary, arrays = measured("distributed", {"bits", "one", "stream", "lost", "said", "resume"})
    assert "one of them has ended" in summary["message"]
    assert arrays["processes"].tolist() == [1, 2]
    assert np.isfinite(arrays["theta"]).all()
