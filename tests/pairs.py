"""Fixtures of the generation tests: one small checkpoint in transformers' hands and in ours."""

import warnings

import pytest
from checkpoints import make_checkpoint

from codegen_fast import AutoModelForCausalLM


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(transformers' model, ours) of one small checkpoint; their greedy tokens do not end early."""
    folder = tmp_path_factory.mktemp("checkpoint")
    theirs = make_checkpoint(folder, seed=3)
    return theirs, AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture(autouse=True)
def quiet():
    """Both libraries' warnings about knobs are not what these tests are about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
