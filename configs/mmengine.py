# A config in mmengine's format is a program, and runs only when trusted:
#   densevl eval run configs/mmengine.py --trust-config
# What it computes is its only advantage over a .yaml file.
dataset = "rendered"
model = "mini"
recipe = "naclip"
side = 96
protocol = {"short_side": side, "crop": side, "stride": side // 2}
del side  # what is left are the fields of the experiment
