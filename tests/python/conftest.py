"""Settings of the whole Python suite."""

import os

# Waiting threads sleep (read when torch loads): on a busy machine spinning ones make small tests seven
# times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import hypothesis
import pytest
import torch

# Two threads even where xdist runs one worker a core: kernels must be tested with more than one.
torch.set_num_threads(2)

hypothesis.settings.register_profile("ci", max_examples=60, deadline=None, derandomize=True)
hypothesis.settings.register_profile("nightly", max_examples=2000, deadline=None)
hypothesis.settings.load_profile("ci")


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Every tensor that torch allocates without filling, our ops' results included, starts as NaN or as the
    largest integer.
    """
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = filled


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
