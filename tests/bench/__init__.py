"""Benchmarks: ``make bench``. Each ``bench_*.py`` has ``run() -> list[dict]`` and measures both sides of
its ratio in the same run, because only ratios survive a change of machine."""
