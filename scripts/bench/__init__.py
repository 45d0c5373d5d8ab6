"""The benchmarks: `python scripts/bench SUBJECT`. What they found is in results.json, as tables in
RESULTS.md; `__main__.py` lists the subjects."""
