"""Run the GPU code without a GPU: fake CUDA tensors, a fake process group, and an account of all that happens."""
