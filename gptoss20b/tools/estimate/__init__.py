"""The scaling model behind `python -m gptoss20b estimate`: step time and time to train, with every assumption named."""
