"""Settings: their values, twistd's options, and the files they name."""
