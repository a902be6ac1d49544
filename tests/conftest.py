"""Settings that every test shares: generated inputs are the same on every run."""

import torch
from hypothesis import settings

settings.register_profile("ornstein", derandomize=True, deadline=None, max_examples=40)
settings.load_profile("ornstein")
torch.set_num_threads(1)
