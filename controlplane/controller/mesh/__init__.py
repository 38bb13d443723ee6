"""The agents' measurements collected, judged, debounced, and answered for."""
