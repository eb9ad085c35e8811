"""Weights in and out: folders of Hugging Face's GptOssForCausalLM, folders of this project, the model of a rank."""
