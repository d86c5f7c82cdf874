"""Training, export and evaluation of densevl's own small SAM, "mini-sam", on scenes rendered by `tools.render`."""
