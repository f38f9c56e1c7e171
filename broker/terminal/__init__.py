"""The terminal's library: register, permit, call, answer; and the channel of a call."""
