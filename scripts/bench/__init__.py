"""Benchmarks of loractl: `python scripts/bench SUBJECT`, see `__main__.py`.

What they find is kept in results.json; RESULTS.md shows it as tables.
"""
