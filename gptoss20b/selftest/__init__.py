"""Check on the device of a run that each kernel computes what it should, before the clock starts."""
