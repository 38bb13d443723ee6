"""Spans, metrics and traces of a controller, and the built-in span store with its questions."""
