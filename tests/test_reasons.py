"""Every reason code: a model that gets it, what it is told, and that doing what `unlock` says makes the node fold."""

import pytest

from bnfold.reasons import CODES
from tests.reason_examples import EXAMPLES, Example, told
from tests.reasons_doc import PAGE, page

each = pytest.mark.parametrize("example", EXAMPLES, ids=[f"{one.code}: {one.drawing}"[:60] for one in EXAMPLES])


def test_every_code_has_an_example() -> None:
    assert {example.code for example in EXAMPLES} == CODES.keys()


@each
def test_the_example_stays_for_this_reason(example: Example) -> None:
    found = told(example)[example.node]
    assert not found.folded
    assert found.reasons[0].code == example.code
    assert found.reasons[0].unlock, "it says what would unlock it, or that nothing does"


@each
def test_what_it_says_unlocks_it(example: Example) -> None:
    if not example.unlocked:
        assert told(example)[example.node].reasons[0].unlock.startswith("nothing")
        return
    found = told(example, unlocked=True)[example.node]
    assert found.folded, found.reasons


def test_the_page_is_what_the_code_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `make reasons`"
