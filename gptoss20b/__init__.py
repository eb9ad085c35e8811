"""GPT-OSS 20B mixture-of-experts pretraining for MLPerf Training: one run, from configuration to compliant log."""

__version__ = "0.1.0"
