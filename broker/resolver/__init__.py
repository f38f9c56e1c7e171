"""The resolver: where terminals are; in the mediator's process (``local``) or not (``remote``)."""
