"""Where and how a step runs: processes, devices, formats of numbers, streams."""
