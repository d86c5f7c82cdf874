_base_ = ["../_base_/run.py", "../_base_/datasets/rendered.py", "../_base_/models/mini.py"]
task = "instance"
proposals = "mini-sam"
