dataset = "rendered"
root = None  # python -m tools.render benchmark --out data/benchmark
