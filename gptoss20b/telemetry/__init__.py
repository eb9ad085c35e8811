"""GPU telemetry: power, clocks, temperature and throttle reasons, sampled beside the run into a CSV file."""
