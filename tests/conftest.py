"""Shared by all tests: no hub, few threads, and the share of named mistakes that the checks catch."""

import os

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_DATASETS_OFFLINE="1")

import pytest

CAUGHT = pytest.StashKey[list]()


def pytest_configure(config):
    config.stash[CAUGHT] = []


@pytest.fixture
def mistakes_caught(request):
    """Call it with whether a named mistake was caught; the share is printed at the end of the run."""
    return request.config.stash[CAUGHT].append


def pytest_terminal_summary(terminalreporter, config):
    if caught := config.stash[CAUGHT]:
        terminalreporter.write_line(
            f"Named mistakes caught with their own message: {sum(caught)} of {len(caught)} "
            f"({sum(caught) / len(caught):.0%})"
        )
