"""`python -m gptoss20b bench`: time a training step on one GPU, in all and by part of the model, on random tokens."""
