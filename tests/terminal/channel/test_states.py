"""The table of a channel's states."""

from __future__ import annotations

from itertools import product

import pytest

from broker.terminal.channel import states
from broker.terminal.channel.states import STATES


class ChannelStatesTests:
    """What each side's end of data, a close and a break lead to, whatever came before."""

    @pytest.mark.parametrize(
        ("events", "end"),
        [
            ((states.WE_END, states.THEY_END), states.CLOSING),
            ((states.THEY_END, states.WE_END), states.CLOSING),
            ((states.THEY_END, states.CLOSE), states.CLOSING),
            ((states.CLOSE, states.THEY_END), states.CLOSING),
            ((states.CLOSE_AFTER, states.DRAINED, states.THEY_END), states.CLOSING),
            ((states.CLOSE_AFTER, states.THEY_END, states.DRAINED), states.CLOSING),
            ((states.THEY_END, states.CLOSE_AFTER, states.DRAINED), states.CLOSING),
            ((states.WE_END, states.CLOSE), states.LINGERING),
        ],
    )
    def test_ends(self, events: tuple[str, ...], end: str) -> None:
        """Both sides' ends, in any order, close the channel; one alone does not."""
        state = states.OPEN
        for event in events:
            assert state != states.CLOSING
            state = STATES.advance(state, event)
        assert state == end

    @pytest.mark.parametrize("state", [state for state in STATES if state not in states.OVER])
    def test_broken_or_lost(self, state: str) -> None:
        """From every state a channel can be broken off, and lost."""
        assert STATES.advance(state, states.BREAK) == states.BROKEN
        assert STATES.advance(state, states.LOSE) == states.LOST

    def test_over(self) -> None:
        """What is over ends in one way alone."""
        assert dict(STATES[states.BROKEN]) == {states.LOSE: states.LOST}
        assert STATES.is_final(states.LOST)

    def test_no_second_end(self) -> None:
        """No side can end its data twice."""
        for state, event in product(states.ENDED_BY_THEM, (states.THEY_END,)):
            assert not STATES.allows(state, event)
        for state in STATES:
            if state not in states.SENDS:
                assert not STATES.allows(state, states.WE_END)
