"""Spans, metrics and traces of a controller, and the built-in span store with its questions.

``setup``, ``metrics``, ``live``, ``tracing``   what a controller is watched by, and where its numbers come from
``span_intake``, ``span_store``, ``trace_query``, ``waterfall``   spans from the bus: kept, asked for, drawn
"""
