"""Which tests of the flow-matching families are run every time, and which with the slow ones."""

from __future__ import annotations

import pytest

QUICK = {
    "test_it_predicts_what_diffusers_predicts",
    "test_it_draws_what_diffusers_draws",
    "test_the_plan_can_count_it",
    "test_a_prompts_conditioning_is_its_own",
}
"""Of a family's suite: what holds its numbers. Runs, files and copies are for the slow tests."""


def pytest_collection_modifyitems(items):
    for item in items:
        suite = getattr(item, "cls", None)
        if suite is not None and getattr(suite, "quick", False) and item.originalname not in QUICK:
            item.add_marker(pytest.mark.slow)
