measures = ("iou", "calibration")
limit = None
seed = 0
