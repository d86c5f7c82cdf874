"""Anomaly maps: what sound and damaged are called, windows of tokens, memories of normal images, and metrics.

`densevl.AnomalyDetector` puts these together; each file here is one step and knows no images or files.
"""
