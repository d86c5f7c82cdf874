"""Anomaly maps: words for sound and damaged, windows of tokens, memories of normal images, and metrics.

`densevl.AnomalyDetector` combines them; each file here is one step and knows no images or files.
"""
