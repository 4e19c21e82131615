"""Forged releases, at random: see tests/forging.py."""

from __future__ import annotations

from tests import forging


def test_no_forged_release_breaks_the_audit_or_passes() -> None:
    ended = forging.main(600, seed=5)
    assert ended.total() == 600
    assert all(ended[kind] for kind in ("refused", "certificate", "files", "holds")), ended
