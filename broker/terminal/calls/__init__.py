"""The three ways a call begins: place it, wait for the callee to connect, dial back."""
