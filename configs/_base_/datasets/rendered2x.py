dataset = "rendered2x"  # scenes of twice the side
root = None
