"""`python -m gptoss20b bench`: what a training step costs on one GPU, in all and by part, on synthetic tokens."""
