"""Tests of a terminal's registration at its mediator."""
