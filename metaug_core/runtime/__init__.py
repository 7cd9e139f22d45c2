"""Where a step runs: processes, devices, number formats."""
