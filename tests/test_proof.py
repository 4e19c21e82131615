"""Every seeded bug: what the certificate alone sees, with and without it, and that each layer sees what it claims."""

from __future__ import annotations

import pytest

from tests.proof_doc import PAGE, page
from tests.seeded import CERTAIN, LAYERS, Bug, certificate_alone, measured, planted
from tests.seeded_bugs import BUGS

each = pytest.mark.parametrize("bug", BUGS, ids=[bug.name for bug in BUGS])


@each
def test_the_certificate_alone_sees_what_is_wrong_and_only_that(bug: Bug) -> None:
    model = bug.model()
    with planted(bug):
        said = certificate_alone(model)
    assert bool(said) == ("certificate" in bug.layers)
    assert said or bug.changes not in CERTAIN
    assert not certificate_alone(model)


@each
def test_each_layer_sees_what_it_claims(bug: Bug) -> None:
    proof = measured(bug)
    assert proof.folds > 0
    assert proof.seen == bug.layers, proof.said
    assert bool(bug.blind) == (bug.layers != list(LAYERS)), "it is said why a layer sees nothing"


def test_every_layer_is_needed() -> None:
    """No two layers see the same bugs, but for the runtime with its optimisations off and on."""
    seen = {layer: frozenset(bug.name for bug in BUGS if layer in bug.layers) for layer in LAYERS}
    assert len(set(seen.values())) == len(LAYERS) - 1


def test_the_page_is_what_was_measured() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `make proof`"
