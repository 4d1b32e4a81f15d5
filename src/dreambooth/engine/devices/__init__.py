"""Where a run computes: devices and processes, precision, compiling, memory."""
