"""The method on subjects that an embedded base has never seen: learned, and the class kept."""

from __future__ import annotations

import math
import os
import statistics
import sys
from pathlib import Path

import pytest

T_OF_FIVE = 2.5706
"""Student's t: 95 % of it, two-sided, five degrees of freedom."""


@pytest.mark.slow
def test_likeness_rises_and_prior_preservation_keeps_the_class(tmp_path, monkeypatch, emit):
    """Twelve runs, 10 to 20 minutes; FINDINGS=folder takes those that `make findings` has made."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "bench"))
    import findings

    work = Path(os.environ.get("FINDINGS") or tmp_path)
    monkeypatch.setenv("DREAMBOOTH_CACHE", str(work / "cache"))
    ways = {way.name: way for way in findings.WAYS}
    kept, lost = [], []
    for subject in findings.subjects(None):
        pair = [ways["good"], ways["class-lost"]]
        for way in pair:
            findings.make(subject, way, work)
        with_prior, without = (findings.read(subject, way, work).last for way in pair)
        likeness = with_prior.score("subject_similarity")
        rose, error = likeness.change
        emit(f"{subject.name}: likeness", f"{likeness.baseline:.3f} -> {likeness.value:.3f}, "
             f"+{rose:.3f} +- {error:.3f}, photographs {likeness.real:.3f}")  # fmt: skip
        assert rose > 3 * error, subject.name
        pres = [e.score("prior_preservation").value for e in (with_prior, without)]
        emit(f"{subject.name}: PRES with prior, without", f"{pres[0]:.3f}, {pres[1]:.3f}")
        kept.append(pres[0])
        lost.append(pres[1])
    assert len(kept) == 6
    apart = [b - a for a, b in zip(kept, lost, strict=True)]
    margin = T_OF_FIVE * statistics.stdev(apart) / math.sqrt(len(apart))
    emit("PRES lower by", f"{statistics.mean(apart):.3f} +- {margin:.3f} (95 %)")
    assert statistics.mean(apart) - margin > 0
    del sys.modules["findings"]
