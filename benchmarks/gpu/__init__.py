"""This project's training step beside baselines on one GPU: `python -m benchmarks.gpu.compare`; see README.md."""
