"""Training, export and evaluation of densevl's own small CLIP, "mini", on scenes rendered by `tools.render`."""
