"""The few-shot heads, one file each."""
