"""GPT-OSS 20B mixture-of-experts pretraining for MLPerf Training: one run, from configuration to compliant log."""
