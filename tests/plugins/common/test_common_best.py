"""The one rule by which a step is called the best."""

from __future__ import annotations

import pytest

from dreambooth_plugins.common.best import best_step, obeying

LIKE = {100: (0.5, 0.0), 200: (0.6, 0.0), 300: (0.8, 0.0)}


@pytest.mark.parametrize(
    ("free", "wanted"),
    [
        ({}, 300),  # nothing was measured that could be disobeyed
        ({100: (0.3, 0.01), 200: (0.29, 0.01), 300: (0.2, 0.01)}, 200),
        # 0.3 - 0.27 is two errors of the difference, sqrt(2) x 0.01, and a little more.
        ({100: (0.3, 0.01), 200: (0.27, 0.01), 300: (0.2, 0.01)}, 100),
        ({100: (0.3, 0.1), 200: (0.3, 0.1), 300: (0.2, 0.1)}, 300),
        ({100: (0.3, 0.01)}, 100),  # the others were not measured
        ({400: (0.3, 0.01)}, None),
    ],
)
def test_the_likest_step_among_those_that_obey(
    free: dict[int, tuple[float, float]], wanted: int | None
) -> None:
    assert best_step(LIKE, free) == wanted


def test_nothing_measured_names_no_step() -> None:
    assert best_step({}, {100: (0.3, 0.0)}) is None
    assert obeying({}) == []
