"""Settings that every test shares: generated inputs are the same on every run."""

import pytest
import torch
from hypothesis import settings

settings.register_profile("ornstein", derandomize=True, deadline=None, max_examples=40)
settings.load_profile("ornstein")
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits():
    """Scikit-learn's digits as a data set, with the classifier that is trained on them."""
    from ornstein.features.classifier import train_classifier
    from tests import datasets

    data = datasets.digits()
    return data, train_classifier(data)
