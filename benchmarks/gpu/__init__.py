"""This project's training step beside its peers' on one GPU. `python -m benchmarks.gpu.compare`; see README.md."""
