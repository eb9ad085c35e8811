"""Conversion of weights between Hugging Face's GptOssForCausalLM and this project, and loading into a rank's model."""
