"""The parts of the bench, each of which can be run by itself."""
