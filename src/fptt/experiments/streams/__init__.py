"""Learning from a stream: `fptt stream`."""
